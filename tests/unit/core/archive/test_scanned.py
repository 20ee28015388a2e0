"""Plain archives, looked into by a scan of their headers: those that others make, and ours."""

from __future__ import annotations

import random
from pathlib import Path

import foreign_vma
import pytest
from archives import encode, read_of
from foreign_vma import CLUSTER, Style
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.core.archive import scanned
from pybackup.core.archive.chain import open_chain
from pybackup.core.archive.scanned import ScannedIndex
from pybackup.core.archive.view import ArchiveView
from pybackup.core.errors import ArchiveError
from pybackup.core.places.kinds import LocalPath

BLOCK = 4096


def disk(clusters: str, seed: int) -> bytes:
    """A cluster for each letter: zeros, full, or sparse."""
    choice = random.Random(seed)
    made = {
        "0": lambda: bytes(CLUSTER),
        "f": lambda: choice.randbytes(CLUSTER),
        "s": lambda: (bytes(2 * BLOCK) + choice.randbytes(100)).ljust(CLUSTER, b"\0"),
    }
    return b"".join(made[one]() for one in clusters)


def view_of(archive: bytes, **options: bool) -> ArchiveView:
    return ArchiveView([ScannedIndex(read_of(archive), len(archive), "a.vma", **options)])


def drives_in(view: ArchiveView) -> dict[str, bytes]:
    """Every cluster at random, and what walk() says of zeros has to agree."""
    found = {}
    for drive in view.header.drives:
        numbers = list(range(drive.clusters))
        random.Random(1).shuffle(numbers)
        clusters = {number: view.read_cluster(drive.drive_id, number) for number in numbers}
        found[drive.name] = b"".join(clusters[number] for number in sorted(clusters))[: drive.size]
        at = 0
        for run in view.walk(drive.drive_id):
            assert run.first == at
            zero = not any(any(clusters[number]) for number in range(run.first, run.end))
            assert (run.segment is None) == zero or run.clusters == 0
            at = run.end
        assert at == drive.clusters
    return found


STYLES = st.builds(
    Style,
    entries=st.sampled_from([1, 7, 58, 59]),
    mixed=st.booleans(),
    backwards=st.booleans(),
    filler=st.sampled_from([0, 3]),
    whole_clusters=st.booleans(),
)


@settings(max_examples=15, deadline=None)
@given(STYLES, st.lists(st.text("0fs", min_size=1, max_size=40), min_size=1, max_size=3), st.booleans())
def test_archives_of_others(style: Style, kinds: list[str], whole_extents: bool) -> None:
    drives = {f"drive-{number}": disk(one, number)[: -512 or None] for number, one in enumerate(kinds)}
    archive = foreign_vma.write(drives, {"conf": b"x"}, style)
    assert drives_in(view_of(archive, whole_extents=whole_extents)) == drives


def test_an_archive_of_ours_whose_digests_are_compared() -> None:
    drives = {"a": disk("0fs" * 30, 1), "b": disk("f", 2)[:-777]}
    archive = encode(drives, level=None)
    assert drives_in(view_of(archive)) == drives
    damaged = bytearray(archive)
    damaged[-100] ^= 1
    view = view_of(bytes(damaged))
    with pytest.raises(ArchiveError, match=r"does not match its digest .* drive 2, cluster 0"):
        view.read_cluster(2, 0)
    assert view.read_cluster(1, 0) == bytes(CLUSTER)


def test_a_memory_image_that_ends_early_is_zeros_from_there() -> None:
    memory = disk("fff", 1)
    drives = {"vmstate": memory + bytes(2 * CLUSTER), "a": disk("f0", 2)}
    archive = foreign_vma.write(drives, style=Style(entries=1, mixed=False))
    shorter = archive[:]
    for number in (3, 4):
        cut = foreign_vma.extent([(bytes.fromhex("00000001") + number.to_bytes(4, "big"), b"")])
        assert cut in shorter
        shorter = shorter.replace(cut, b"")
    assert drives_in(view_of(shorter)) == drives


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda archive: archive[:-1], "ends in the middle of an extent"),
        (lambda archive: archive[:-5000], "ends in the middle of an extent"),
        (lambda archive: archive[: -512 - CLUSTER], "missing: drive a, clusters 4 to 4"),
        (lambda archive: archive + archive[-512 - CLUSTER :], "found twice: drive a, clusters 4 to 4"),
        (lambda archive: archive + bytes(512), "does not begin with its magic"),
        (lambda archive: archive[:-CLUSTER - 400] + b"!" + archive[-CLUSTER - 399 :], "the MD5 of an extent header"),
        (lambda archive: archive[:600], "ends within its header"),
        (lambda archive: archive[:50], "is damaged|not a VMA archive"),
    ],
)
def test_damage_is_told(change: object, sentence: str) -> None:
    archive = foreign_vma.write({"a": disk("fffff", 1)}, style=Style(entries=1))
    with pytest.raises(ArchiveError, match=sentence):
        view_of(change(archive))  # type: ignore[operator]


def test_what_lies_too_scattered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanned, "MOST_ROWS", 3)
    assert view_of(foreign_vma.write({"a": disk("fffff", 1)}))
    with pytest.raises(ArchiveError, match="too scattered"):
        view_of(foreign_vma.write({"a": disk("fffff", 1)}, style=Style(entries=1)))


def test_zeros_take_one_row_and_few_reads() -> None:
    archive = foreign_vma.write({"a": bytes(1200 * CLUSTER)})
    reads = []

    def pread(offset: int, length: int) -> bytes:
        reads.append(length)
        return archive[offset : offset + length]

    index = ScannedIndex(pread, len(archive), "a.vma")
    assert [run.clusters for run in index.runs_between(1, 0, 1200)] == [1200]
    assert len(reads) < 7


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (b"\x28\xb5\x2f\xfd" + bytes(100), "`pybackup merge ARCHIVE NEW`"),
        (b"\x1f\x8b" + bytes(100), "`pybackup merge ARCHIVE NEW`"),
        (b"\x89LZO\0\r\n\x1a\n" + bytes(100), r"`lzop -dc ARCHIVE \| pybackup merge - NEW`"),
        (bytes(4096), "it is not an archive"),
        (b"", "the file is empty"),
    ],
)
def test_what_has_no_index_is_refused_with_what_makes_one(tmp_path: Path, start: bytes, sentence: str) -> None:
    (tmp_path / "a").write_bytes(start)
    with pytest.raises(ArchiveError, match=sentence), open_chain(LocalPath(str(tmp_path / "a")), scan=True):
        pass
