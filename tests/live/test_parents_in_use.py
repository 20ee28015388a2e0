"""What a delta needs: never taken for another of the same uuid, never replaced while it is needed, missed when gone."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from random import Random

import pytest
from command_line import end, listing, pybackup, start, wait_until

CLUSTER = 65536
UUID = "00000000-0000-0000-0000-000000000007"
NOISE = Random(12)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(NOISE.randbytes(6 * CLUSTER))
    return path


@pytest.fixture
def place(tmp_path: Path, disk: Path) -> Path:
    """A folder with an archive of the disk, of known uuid and time."""
    folder = tmp_path / "backups"
    folder.mkdir()
    assert pybackup("run", "--uuid", UUID, "--time", 1_700_000_000, disk, folder / "full.vma.zst").code == 0
    return folder


def test_an_archive_alike_in_all_but_its_data_is_not_the_parent(place: Path, disk: Path, tmp_path: Path) -> None:
    """Of noise all sizes and places are the same: only what the directory tells of all digests is another."""
    full, delta = place / "full.vma.zst", place / "delta.vma.zst"
    content = disk.read_bytes()
    disk.write_bytes(b"x" * CLUSTER + content[CLUSTER:])
    assert pybackup("run", "--base", full, disk, delta).code == 0
    disk.write_bytes(content[:-CLUSTER] + NOISE.randbytes(CLUSTER))
    assert pybackup("run", "--force", "--uuid", UUID, "--time", 1_700_000_000, disk, full).code == 0
    for command in (["restore", delta, tmp_path / "out.img"], ["verify", delta], ["compare", delta, disk]):
        done = pybackup(*command)
        assert done.code == 4
        assert f"{full} has that uuid, but is not the file that it was made from" in done.err
    assert not (tmp_path / "out.img").exists()


def test_an_archive_that_somebody_needs_is_not_replaced(place: Path, disk: Path) -> None:
    full = place / "full.vma.zst"
    assert pybackup("run", disk, place.parent / "other.vma.zst").code == 0
    before = listing(place)
    with full.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        link = place / "link.vma.zst"
        link.symlink_to(full.name)
        for target in (full, link):
            for command in (["run", "--force", disk], ["merge", "--force", place.parent / "other.vma.zst"]):
                done = pybackup(*command, target)
                assert done.code == 6, done.err
                assert "is not replaced: an archive is being made that needs it" in done.err
        link.unlink()
    assert listing(place) == before
    assert pybackup("run", "--force", "--incremental", disk, full).code == 0, "its own look at it is none of these"


def begun(place: Path, full: Path) -> subprocess.Popen[bytes]:
    """A run that has chosen its parent, and waits for the rest of its disk."""
    run = start("run", "--base", full, "disk=-", "--size", str(6 * CLUSTER), place / "delta.vma.zst")
    assert run.stdin is not None
    run.stdin.write(b"y" * CLUSTER)
    run.stdin.flush()
    wait_until(lambda: any(path.name.endswith(".partial") for path in place.iterdir()), "the run to begin", [run])
    return run


@pytest.mark.parametrize("lost", ["removed", "replaced", "cut off"])
def test_a_parent_that_is_lost_meanwhile_is_missed(place: Path, disk: Path, lost: str) -> None:
    full = place / "full.vma.zst"
    other = place.parent / "other.vma.zst"
    assert pybackup("run", disk, other).code == 0
    run = begun(place, full)
    if lost == "removed":
        full.unlink()
    elif lost == "replaced":
        other.rename(full)
    else:
        os.truncate(full, full.stat().st_size - 100)
    assert run.stdin is not None
    run.stdin.write(b"y" * (5 * CLUSTER))
    done = end(run)
    assert done.code == 4
    assert "the new archive would need one that is not there any more" in done.err
    assert not (place / "delta.vma.zst").exists()
    assert not any(path.name.endswith(".partial") for path in place.iterdir())


def test_while_a_delta_is_made_its_parent_is_not_replaced(place: Path, disk: Path) -> None:
    full = place / "full.vma.zst"
    run = begun(place, full)
    assert pybackup("run", "--force", disk, full).code == 6
    assert run.stdin is not None
    run.stdin.write(b"y" * (5 * CLUSTER))
    assert end(run).code == 0
    assert pybackup("restore", place / "delta.vma.zst", "-").out == b"y" * (6 * CLUSTER)
