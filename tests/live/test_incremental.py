"""Incremental backups through the real program: chains in folders and stores, and what is done where there is none."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from command_line import pybackup

CLUSTER = 65536


class Nights:
    """A disk, and the folder that its archives lie in."""

    def __init__(self, folder: Path) -> None:
        self.disk, self.place = folder / "disk.img", folder / "backups"
        self.place.mkdir()
        self.chance = Random(5)
        self.disk.write_bytes(self.chance.randbytes(20 * CLUSTER) + bytes(20 * CLUSTER))
        self.contents: list[bytes] = []

    def change(self) -> None:
        content = bytearray(self.disk.read_bytes())
        for _ in range(3):
            at = self.chance.randrange(len(content) - 4096)
            content[at : at + 4096] = self.chance.choice((bytes(4096), self.chance.randbytes(4096)))
        self.disk.write_bytes(content)

    def back_up(self, *options: str, number: int | None = None) -> dict[str, object]:
        """One night more; what the program tells of it."""
        number = len(self.contents) if number is None else number
        done = pybackup("run", *options, "--json", "--time", 1_700_000_000 + number, self.disk, self.archive(number))
        assert done.code == 0, done.err
        self.contents.append(self.disk.read_bytes())
        return dict(done.json)

    def archive(self, number: int) -> Path:
        return self.place / f"disk-{number}.vma.zst"

    def restored(self, number: int, *options: str | Path) -> bytes:
        done = pybackup("restore", *options, self.archive(number), "-")
        assert done.code == 0, done.err
        return done.out


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def way(told: dict[str, object]) -> object:
    (one,) = told["ways"]  # type: ignore[misc]
    return one["way"], one["why"]


def test_every_night_of_a_chain_is_restored(nights: Nights, tmp_path: Path) -> None:
    first = nights.back_up("--incremental")
    assert way(first) == ("full", "no archive that fits lies beside it")
    for _ in range(4):
        nights.change()
        told = nights.back_up("--incremental")
        assert way(told) == ("digest", None)
        assert 0 < told["written"] < first["written"] / 2  # type: ignore[operator]
        assert told["unchanged"] > 30 * CLUSTER  # type: ignore[operator]
    for number, content in enumerate(nights.contents):
        assert nights.restored(number) == content
        assert pybackup("verify", nights.archive(number)).code == 0
    assert pybackup("compare", nights.archive(4), nights.disk).code == 0
    assert pybackup("compare", nights.archive(3), nights.disk).code == 1
    assert pybackup("restore", nights.archive(4), tmp_path / "x.qcow2").code == 0
    told = pybackup("info", "--json", nights.archive(4)).json
    assert [Path(one["archive"]).name for one in told["needs"]] == [f"disk-{n}.vma.zst" for n in (3, 2, 1, 0)]
    assert told["missing"] is None
    assert b"5 archives, back to 2023-11-14 22:13:20 UTC" in pybackup("info", nights.archive(4)).out
    alone = pybackup("verify", nights.archive(4)).out
    assert b"sound in itself" in alone and b"it needs 4 archives, of which the indexes alone were read" in alone
    chain = pybackup("verify", "--chain", nights.archive(4))
    assert chain.code == 0
    assert chain.out.count(b"sound") == 5


def test_a_lost_parent_is_named_and_nothing_is_written(nights: Nights, tmp_path: Path) -> None:
    for number in range(3):
        nights.back_up("--incremental")
        nights.change()
        assert nights.archive(number).exists()
    aside = tmp_path / "aside"
    aside.mkdir()
    uuid = pybackup("info", "--json", nights.archive(1)).json["uuid"]
    shutil.move(nights.archive(1), aside / "renamed.vma.zst")
    for command in (["restore", nights.archive(2), tmp_path / "x"], ["verify", nights.archive(2)]):
        done = pybackup(*command)
        assert done.code == 4
        assert f"uuid {uuid}, made " in done.err
        assert "then called disk-1.vma.zst; --parents names another place" in done.err
    assert pybackup("compare", nights.archive(2), nights.disk).code == 4
    assert pybackup("serve", nights.archive(2)).code == 4
    assert not (tmp_path / "x").exists()
    assert nights.restored(2, "--parents", aside) == nights.contents[2]
    assert pybackup("info", "--json", nights.archive(2)).json["missing"] is not None
    assert b"; with what is there of what it needs, " in pybackup("info", nights.archive(2)).out
    # Another backup under the parent's name is not the parent.
    shutil.copy(nights.archive(0), nights.archive(1))
    assert pybackup("restore", nights.archive(2), tmp_path / "x").code == 4
    # And the next night becomes a delta of what can still be restored.
    told = nights.back_up("--incremental")
    assert way(told)[0] == "digest"  # type: ignore[index]
    assert nights.restored(3) == nights.contents[3]


def test_another_file_of_the_same_backup_is_not_the_parent(nights: Nights, tmp_path: Path) -> None:
    uuid = "00000000-0000-0000-0000-000000000007"
    nights.back_up("--uuid", uuid)
    nights.change()
    nights.back_up("--base", str(nights.archive(0)))
    nights.archive(0).unlink()
    nights.back_up("--uuid", uuid, number=0)
    done = pybackup("restore", nights.archive(1), tmp_path / "x")
    assert done.code == 4
    assert f"{nights.archive(0)} has that uuid, but is not the file that it was made from" in done.err


def test_a_chain_ends_in_time(nights: Nights) -> None:
    ways = [way(nights.back_up("--incremental", "--max-chain", "2"))[0] for _ in range(7)]  # type: ignore[index]
    assert ways == ["full", "digest", "digest", "full", "digest", "digest", "full"]
    # That a chain ends when it should is nothing that cron need mail.
    for number in (7, 8):
        done = pybackup("run", "--incremental", "--max-chain", "2", nights.disk, nights.archive(number))
        assert done == (0, b"", "")


def test_disks_that_come_and_go(nights: Nights, tmp_path: Path) -> None:
    """By name: a new one is stored whole, one that is gone is not there any more; growth and shrinking are ordinary."""
    other = tmp_path / "other.img"
    other.write_bytes(b"o" * 3 * CLUSTER)
    nights.back_up("--incremental")
    content = nights.disk.read_bytes()
    nights.disk.write_bytes(content[: 7 * CLUSTER + 1])
    place = nights.place / "two.vma.zst"
    done = pybackup("run", "--incremental", "--json", nights.disk, other, place)
    assert done.code == 0, done.err
    ways = {one["name"]: (one["way"], one["why"]) for one in done.json["ways"]}
    assert ways == {"disk": ("digest", None), "other": ("full", "the parent has no drive of this name")}
    nights.disk.write_bytes(content[: 7 * CLUSTER + 1] + bytes(9 * CLUSTER))
    named = [f"again={nights.disk}", f"disk={other}"]
    done = pybackup("run", "--base", place, *named, nights.place / "three.vma.zst")
    assert done.code == 0, done.err
    assert "again: stored whole: the parent has no drive of this name" in done.err
    for name, expected in (("again", nights.disk), ("disk", other)):
        restored = pybackup("restore", nights.place / "three.vma.zst", "--drive", name, "-")
        assert restored.out == expected.read_bytes()
    assert pybackup("restore", place, "--drive", "disk", "-").out == content[: 7 * CLUSTER + 1]


def test_what_cannot_be_incremental_becomes_a_full_archive(nights: Nights) -> None:
    told = nights.back_up("--base", "nowhere.vma.zst")
    assert way(told)[0] == "full"  # type: ignore[index]
    assert "nowhere.vma.zst cannot be its parent" in str(way(told)[1])  # type: ignore[index]
    damaged = nights.archive(0).read_bytes()[:-40]
    (nights.place / "damaged.vma.zst").write_bytes(damaged)
    plain = nights.place / "plain.vma"
    assert pybackup("run", "--compress", "none", nights.disk, plain).code == 0
    for base in ("damaged.vma.zst", "plain.vma"):
        told = nights.back_up("--base", str(nights.place / base))
        assert way(told)[0] == "full"  # type: ignore[index]
        assert nights.restored(len(nights.contents) - 1) == nights.contents[-1]


def test_what_makes_no_sense_is_refused(nights: Nights) -> None:
    for options, sentence in (
        (["--incremental", "--base", "x"], "name none with --base"),
        (["--incremental", "--compress", "none"], "cannot be a delta"),
        (["--parents", "x"], "--parents goes with"),
        (["--incremental", "--max-chain", "0"], "0 is not in the range"),
    ):
        done = pybackup("run", *options, nights.disk, nights.archive(0))
        assert (done.code, sentence in done.err) == (2, True), done.err
    assert pybackup("run", "--incremental", nights.disk, "-").code == 2
    assert pybackup("run", "--incremental", nights.disk, "|cat > x").code == 2
    assert not list(nights.place.iterdir())


def test_a_parent_that_is_being_removed_is_none(nights: Nights) -> None:
    """Whoever removes archives locks each for itself; whoever builds on one holds it."""
    nights.back_up("--incremental")
    fd = os.open(nights.archive(0), os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        told = nights.back_up("--incremental")
    finally:
        os.close(fd)
    assert way(told) == (
        "full",
        f"{nights.archive(0)} cannot be its parent: {nights.archive(0)} is being removed by somebody",
    )


def test_a_delta_is_a_parent_for_a_pipe_too(nights: Nights, tmp_path: Path) -> None:
    nights.back_up("--incremental")
    nights.change()
    done = pybackup("run", "--base", nights.archive(0), nights.disk, "-")
    assert done.code == 0
    (tmp_path / "piped.vma.zst").write_bytes(done.out)
    restored = pybackup("restore", "--parents", nights.place, tmp_path / "piped.vma.zst", "-")
    assert restored.out == nights.disk.read_bytes()


def test_a_source_that_comes_through_a_pipe(nights: Nights) -> None:
    content = nights.disk.read_bytes()
    for number in range(2):
        done = pybackup(
            "run",
            "--incremental",
            "--json",
            "disk=-",
            "--size",
            str(len(content)),
            nights.archive(number),
            stdin=content,
        )
        assert done.code == 0, done.err
    assert json.loads(done.out)["unchanged"] == len(content)
    assert nights.restored(1) == content


def test_verified_before_it_gets_its_name(nights: Nights) -> None:
    nights.back_up("--incremental", "--verify")
    nights.change()
    told = nights.back_up("--incremental", "--verify")
    assert told["verified"] is True


def test_damage_in_an_ancestor_is_told_by_name(nights: Nights, tmp_path: Path) -> None:
    nights.back_up("--incremental")
    nights.change()
    nights.back_up("--incremental")
    content = bytearray(nights.archive(0).read_bytes())
    content[400_000] ^= 0x40
    nights.archive(0).write_bytes(content)
    done = pybackup("restore", nights.archive(1), tmp_path / "x")
    assert done.code == 4
    assert f"in {nights.archive(0)}" in done.err
    assert "drive disk, cluster" in done.err
    saved = pybackup("restore", "--skip-damaged", nights.archive(1), tmp_path / "y")
    assert saved.code == 4
    found, expected = (tmp_path / "y").read_bytes(), nights.contents[1]
    wrong = [at for at in range(0, len(expected), CLUSTER) if found[at : at + CLUSTER] != expected[at : at + CLUSTER]]
    assert 0 < len(wrong) <= 8
    assert all(not any(found[at : at + CLUSTER]) for at in wrong)
    assert pybackup("verify", nights.archive(1)).code == 0
    assert pybackup("verify", "--chain", nights.archive(1)).code == 4


def test_no_archive_takes_the_place_of_one_that_it_needs(nights: Nights) -> None:
    nights.back_up("--incremental")
    nights.back_up("--incremental")
    nights.change()
    before = nights.archive(0).read_bytes()
    for base in (nights.archive(0), nights.archive(1)):
        refused = pybackup("run", "--force", "--base", base, nights.disk, nights.archive(0))
        assert refused.code == 2 and f"{nights.archive(0)} would be replaced" in refused.err
    assert nights.archive(0).read_bytes() == before
    nights.archive(1).unlink()
    told = nights.back_up("--force", "--incremental", number=0)
    assert way(told) == ("full", f"it replaces {nights.archive(0)}, of which it would be a delta")
    assert nights.restored(0) == nights.disk.read_bytes()


def test_no_machine_becomes_a_delta_of_another(nights: Nights, tmp_path: Path) -> None:
    """Disks of one name from different places, in one folder: of its own night before each is a delta."""
    other = tmp_path / "vm2" / "disk.img"
    other.parent.mkdir()
    other.write_bytes(nights.disk.read_bytes())
    for night, time in ("20240101", "1704110400"), ("20240102", "1704196800"):
        for number, disk in enumerate((nights.disk, other), 1):
            options = ("--incremental", "--json", "--time", time)
            done = pybackup("run", *options, disk, nights.place / f"vm{number}-{night}.vma.zst")
            assert way(done.json)[0] == ("full" if night == "20240101" else "digest")
            needs = pybackup("info", "--json", nights.place / f"vm{number}-{night}.vma.zst").json["needs"]
            parents = [f"vm{number}-20240101.vma.zst"] if night != "20240101" else []
            assert [Path(one["archive"]).name for one in needs] == parents
    # Moved, and its name kept: the names of the archives tell that they belong together.
    moved = tmp_path / "moved" / "disk.img"
    moved.parent.mkdir()
    other.rename(moved)
    options = ("--incremental", "--json", "--time", "1704283200")
    done = pybackup("run", *options, moved, nights.place / "vm2-20240103.vma.zst")
    assert way(done.json)[0] == "digest"
    needs = pybackup("info", "--json", done.json["archive"]).json["needs"]
    assert Path(needs[0]["archive"]).name == "vm2-20240102.vma.zst"
