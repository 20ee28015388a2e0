"""What a delta needs: never taken for another of the same uuid, never replaced while it is needed, missed when gone."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from chains import make_night
from command_line import end, listing, pybackup, start, wait_until
from faulty_proxy import FaultyProxy
from object_store import Store, moto_server

from pybackup.core.archive.chain import ParentSearch
from pybackup.core.archive.identity import read_identity
from pybackup.core.errors import ArchiveError
from pybackup.core.places.kinds import LocalPath

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


def test_a_parent_is_found_behind_links_and_by_its_own_name(place: Path, disk: Path) -> None:
    full, delta = place / "full.vma.zst", place / "delta.vma.zst"
    disk.write_bytes(b"x" * CLUSTER + disk.read_bytes()[CLUSTER:])
    assert pybackup("run", "--base", full, disk, delta).code == 0
    elsewhere = place.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link.vma.zst").symlink_to(delta)
    assert pybackup("restore", elsewhere / "link.vma.zst", "-").out == disk.read_bytes()
    (elsewhere / "link.vma.zst").unlink()
    alone = delta.rename(elsewhere / "delta.vma.zst")
    assert pybackup("restore", alone, "-").code == 4
    for parents in (full, place):
        assert pybackup("restore", "--parents", parents, alone, "-").out == disk.read_bytes()


def test_a_folder_that_cannot_be_listed_hides_no_other_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = make_night({"a": b"x" * CLUSTER}, seed=1)
    lies_at, there = tmp_path / "hidden" / "delta.vma", tmp_path / "there" / "full.vma"
    for path, night in ((lies_at, make_night({"a": b"y" * CLUSTER}, parent, seed=2)), (there, parent)):
        path.parent.mkdir()
        path.write_bytes(night.archive)
    scandir = os.scandir

    def refused(path: str) -> Any:
        if path == str(lies_at.parent):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    child, place = read_identity(LocalPath(str(lies_at))), LocalPath(str(lies_at))
    assert ParentSearch([LocalPath(str(there.parent))]).find(child, place).text == str(there)
    with pytest.raises(ArchiveError, match=r"not found: uuid .*; cannot list .*hidden: Permission denied"):
        ParentSearch().find(child, place)


def test_a_likely_parent_that_cannot_be_read_is_told_of(place: Path, disk: Path) -> None:
    full, delta = place / "full.vma.zst", place / "delta.vma.zst"
    assert pybackup("run", "--base", full, disk, delta).code == 0
    os.truncate(full, 5)
    done = pybackup("restore", delta, "-")
    assert done.code == 4
    assert "which was not found" in done.err and f"{full}: " in done.err


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with moto_server() as port, FaultyProxy(port).running() as proxy:
        yield Store(port, proxy, tmp_path, "parents")


def test_a_parent_that_is_removed_from_a_store_meanwhile_is_missed(store: Store, disk: Path) -> None:
    """There are no locks in stores: the run looks again before its object appears."""
    names = [f"nightly/{number}.vma.zst" for number in range(3)]
    store.run("run", disk, store.url(names[0]))
    store.run("run", "--incremental", disk, store.url(names[1]))
    run = store.start("run", "--base", store.url(names[1]), "disk=-", "--size", str(6 * CLUSTER), store.url(names[2]))
    wait_until(lambda: bool(store.records()) or run.poll() is not None, "the run to begin", [run])
    store.s3.delete_object(Bucket=store.bucket, Key=names[0])
    assert run.stdin is not None
    run.stdin.write(bytes(6 * CLUSTER))
    done = end(run)
    assert done.code == 4, done.err
    assert "nightly/0.vma.zst" in done.err and "does not exist" in done.err
    assert store.keys() == [names[1]]
    assert not store.uploads()
