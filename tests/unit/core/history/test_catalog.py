"""What a place holds, and which archives need which."""

from __future__ import annotations

from pathlib import Path

from archives import encode
from nightly_archives import DAY, NIGHT, nights, put

from pybackup.core.history.catalog import Catalog, read_catalog
from pybackup.core.places.kinds import LocalPath


def catalog_of(folder: Path) -> Catalog:
    return read_catalog(LocalPath(str(folder)))


def broken(catalog: Catalog) -> dict[str, str]:
    return {entry.name: why for entry in catalog.entries if (why := catalog.broken(entry)) is not None}


def test_chains_and_who_needs_whom(tmp_path: Path) -> None:
    nights(tmp_path, 5, full_every=3)
    catalog = catalog_of(tmp_path)
    names = [entry.name for entry in catalog.entries]
    assert names == sorted(names, reverse=True) and len(names) == 5
    assert [len(catalog.chain_of(entry)) for entry in catalog.entries] == [2, 1, 3, 2, 1]
    needed = catalog.needed_by()
    assert [needed[name] for name in names] == [0, 1, 0, 1, 2]
    assert broken(catalog) == {}


def test_a_missing_parent_is_named_and_breaks_all_that_need_it(tmp_path: Path) -> None:
    made = nights(tmp_path, 4, full_every=4)
    gone = Path(made[1].name)
    gone.unlink()
    catalog = catalog_of(tmp_path)
    found = broken(catalog)
    third, fourth = Path(made[2].name).name, Path(made[3].name).name
    assert set(found) == {third, fourth}
    assert "its parent is missing" in found[third] and gone.name in found[third]
    assert found[fourth] == f"its parent {third} is broken"


def test_a_parent_that_was_made_anew_is_no_parent(tmp_path: Path) -> None:
    made = nights(tmp_path, 2, full_every=2)
    put(Path(made[0].name), NIGHT, uuid=made[0].uuid, size=8 << 16)
    assert list(broken(catalog_of(tmp_path))) == [Path(made[1].name).name]


def test_a_merged_archive_stands_for_what_it_replaces(tmp_path: Path) -> None:
    made = nights(tmp_path, 3, full_every=3)
    second = made[1]
    assert second.digest is not None
    put(tmp_path / "m.vma.zst", second.created, uuid=second.uuid, replaces=[second.digest])
    catalog = catalog_of(tmp_path)
    assert [entry.name for entry in catalog.chain_of(catalog.entries[0])][1:] == ["m.vma.zst"]
    for one in made[:2]:
        Path(one.name).unlink()
    assert broken(catalog_of(tmp_path)) == {}


def test_what_is_cut_off_damaged_foreign_or_no_archive(tmp_path: Path) -> None:
    whole = encode({"disk": bytes(range(256)) * 1024})
    (tmp_path / "cut.vma.zst").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "plain.vma").write_bytes(encode({"disk": b"x" * 5000}, level=None))
    (tmp_path / "empty.vma.zst").touch()
    (tmp_path / "zeros.vma.zst").write_bytes(bytes(5000))
    (tmp_path / "dump.vma.lzo").write_bytes(b"\x89LZO\0\r\n\x1a\n" + bytes(100))
    (tmp_path / "no-more.vma.zst").write_bytes(whole[:-90] + bytes(8) + whole[-82:])
    (tmp_path / "other.img").write_bytes(bytes(5000))
    found = catalog_of(tmp_path).by_name
    assert set(found) == {
        *("cut.vma.zst", "plain.vma", "empty.vma.zst", "zeros.vma.zst", "dump.vma.lzo", "no-more.vma.zst"),
    }
    assert found["cut.vma.zst"].is_cut_off and found["cut.vma.zst"].identity is not None
    assert not found["plain.vma"].is_cut_off and not found["plain.vma"].has_index
    assert found["dump.vma.lzo"].is_foreign and "lzop" in found["dump.vma.lzo"].problem
    for name in ("empty.vma.zst", "zeros.vma.zst", "no-more.vma.zst"):
        assert found[name].identity is None and found[name].problem and not found[name].is_foreign
    assert broken(catalog_of(tmp_path))["cut.vma.zst"] == "it ends too early"


def test_archives_that_name_each_other_as_parents_are_broken(tmp_path: Path) -> None:
    """It cannot be without breaking BLAKE3, but `replaces` can say anything."""
    full = put(tmp_path / "full.vma.zst", NIGHT)
    one = put(tmp_path / "one.vma.zst", NIGHT + DAY, full, uuid=b"1" * 16)
    two = put(tmp_path / "two.vma.zst", NIGHT + 2 * DAY, one, uuid=b"2" * 16)
    assert two.digest is not None and one.digest is not None
    put(tmp_path / "one.vma.zst", NIGHT + DAY, two, uuid=b"1" * 16, replaces=[one.digest])
    catalog = catalog_of(tmp_path)
    assert set(broken(catalog)) == {"one.vma.zst", "two.vma.zst"}
    assert sum(catalog.needed_by().values()) == 0
    assert [len(catalog.chain_of(entry)) for entry in catalog.entries] == [2, 2, 1]


def test_thousands_in_a_chain(tmp_path: Path) -> None:
    """No recursion, and nothing that takes the square of the time: 3000 archives that are one chain."""
    listed = nights(tmp_path, 2, full_every=2)
    entries = read_catalog(LocalPath(str(tmp_path))).entries
    from dataclasses import replace

    made, before = [], listed[0]
    for number in range(3000):
        digest = number.to_bytes(16, "big")
        assert before.digest is not None
        header = replace(
            listed[1].header,
            uuid=digest,
            created=NIGHT + number,
            parent_uuid=before.uuid,
            parent_index_digest=before.digest,
        )
        before = replace(listed[1], header=header, digest=digest, about={})
        made.append(replace(entries[0], identity=before, listed=replace(entries[0].listed, name=f"{number:05}")))
    catalog = Catalog([entries[1], *made])
    assert broken(catalog) == {}
    assert catalog.needed_by()[entries[1].name] == 3000
    assert len(catalog.chain_of(catalog.entries[0])) == 3001
