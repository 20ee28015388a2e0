"""Where there is no snapshot to be had: what the user is told, and what is done instead."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from command_line import listing, pybackup

from pybackup.core.endpoints import reflink, sources
from pybackup.core.endpoints.reflink import NoSnapshotError, Snapshot
from pybackup.core.endpoints.sources import OpenSource, SourceOptions, open_source
from pybackup.core.errors import BusyError
from pybackup.core.places.kinds import LocalPath
from pybackup.core.system.image_lock import CONSISTENT_READ, WRITE, ImageLock, forbids_reading, is_written

USUAL = [errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EISDIR]
UNUSUAL = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * 5000)
    return path


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make every clone fail with this errno, whatever the filesystem of the tests can do."""

    def refuse(code: int) -> None:
        def fail(*_: object) -> NoReturn:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(reflink, "clone", fail)

    return refuse


def opened(disk: Path, how: Snapshot, *, force_share: bool = False) -> OpenSource:
    """The source, closed again: what it says of itself."""

    async def open_and_close() -> OpenSource:
        source = await open_source(LocalPath(str(disk)), SourceOptions(snapshot=how, force_share=force_share))
        await source.close()
        return source

    return asyncio.run(open_and_close())


@pytest.mark.parametrize("code", USUAL + UNUSUAL)
def test_reflink_says_why_not(disk: Path, refuse: Callable[[int], None], code: int) -> None:
    refuse(code)
    why = "its filesystem does not make any" if code in USUAL else os.strerror(code)
    with pytest.raises(NoSnapshotError) as failure:
        opened(disk, Snapshot.REFLINK)
    assert str(failure.value) == f"no reflink snapshot of {disk}: {why}"
    assert failure.value.exit_code == 3


@pytest.mark.parametrize("code", USUAL + UNUSUAL)
def test_auto_reads_the_file_and_tells_what_is_unusual(disk: Path, refuse: Callable[[int], None], code: int) -> None:
    refuse(code)
    source = opened(disk, Snapshot.AUTO)
    assert source.kind == "raw"
    assert list(source.notes) == (
        [] if code in USUAL else [f"no reflink snapshot of {disk}: {os.strerror(code)}; it is read under a lock"]
    )
    assert list(source.warnings) == []


def test_auto_refuses_a_file_in_use_and_says_why_there_is_no_snapshot(
    disk: Path, refuse: Callable[[int], None]
) -> None:
    refuse(errno.ENOSPC)
    with disk.open("rb") as file, ImageLock.for_writing(file.fileno(), "disk"):
        with pytest.raises(BusyError, match=r"QEMU image lock\); no reflink snapshot of .*: No space left on device$"):
            opened(disk, Snapshot.AUTO)
        with pytest.raises(BusyError, match=r"QEMU image lock\)$"):
            opened(disk, Snapshot.NONE)


def test_a_failed_open_leaves_no_descriptor(disk: Path, refuse: Callable[[int], None]) -> None:
    refuse(errno.ENOSPC)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(NoSnapshotError):
        opened(disk, Snapshot.REFLINK)
    opened(disk, Snapshot.AUTO)
    assert os.listdir("/proc/self/fd") == before


def test_an_image_that_nobody_may_read_is_not_cloned_either(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "snapshot", lambda *_: pytest.fail("it was cloned"))
    with disk.open("rb") as file, ImageLock(file.fileno(), "disk", [WRITE], [CONSISTENT_READ]):
        for how in Snapshot:
            with pytest.raises(BusyError):
                opened(disk, how)


def test_who_holds_a_lock(disk: Path) -> None:
    with disk.open("rb") as ours, disk.open("rb") as theirs:
        fd = ours.fileno()
        assert (is_written(fd), forbids_reading(fd)) == (False, False)
        with ImageLock.for_reading(theirs.fileno(), "disk"):
            assert (is_written(fd), forbids_reading(fd)) == (False, False)
        with ImageLock.for_writing(theirs.fileno(), "disk"):
            assert (is_written(fd), forbids_reading(fd)) == (True, False)
            assert not is_written(theirs.fileno()), "one's own lock is not another's"


def test_force_share_warns_only_where_somebody_writes(disk: Path) -> None:
    assert list(opened(disk, Snapshot.NONE, force_share=True).warnings) == []
    with disk.open("rb") as file:
        with ImageLock.for_reading(file.fileno(), "disk"):
            assert list(opened(disk, Snapshot.NONE, force_share=True).warnings) == []
        with ImageLock.for_writing(file.fileno(), "disk"):
            assert list(opened(disk, Snapshot.NONE, force_share=True).warnings) == [
                f"{disk} is in use by another program; what is read may be of no one moment"
            ]


def test_the_user_sees_the_warning_once_and_gets_the_archive(disk: Path, tmp_path: Path) -> None:
    with disk.open("rb") as file, ImageLock.for_writing(file.fileno(), "disk"):
        done = pybackup("run", "--snapshot", "none", "--force-share", disk, tmp_path / "out.vma.zst")
    assert done.code == 0
    assert done.err == (
        f"pybackup: warning: {disk} is in use by another program; what is read may be of no one moment\n"
    )


def test_no_locks_on_the_filesystem_is_a_warning(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLocks:
        note = "no image lock on disk: No locks available"

        @classmethod
        def for_reading(cls, *_: object) -> NoLocks:
            return cls()

        def release(self) -> None:
            pass

    monkeypatch.setattr(sources, "ImageLock", NoLocks)
    assert list(opened(disk, Snapshot.NONE).warnings) == [NoLocks.note]


def test_reflink_on_a_filesystem_without_is_one_sentence_and_changes_nothing() -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("no tmpfs at /dev/shm")
    folder = memory / f"pybackup-test-{os.getpid()}"
    folder.mkdir()
    try:
        disk = folder / "disk.img"
        disk.write_bytes(b"x" * 5000)
        failed = pybackup("run", "--snapshot", "reflink", disk, folder / "out.vma.zst")
        assert failed.code == 3
        assert failed.err == f"pybackup: no reflink snapshot of {disk}: its filesystem does not make any\n"
        assert listing(folder) == {"disk.img": b"x" * 5000}
    finally:
        for one in folder.iterdir():
            one.unlink()
        folder.rmdir()


@pytest.mark.parametrize("source", ["-", "serve:nowhere"])
def test_reflink_is_for_files(tmp_path: Path, source: str) -> None:
    refused = pybackup("run", "--snapshot", "reflink", "--size", "1M", source, tmp_path / "out.vma.zst", stdin=b"")
    assert refused.code == 2
    assert listing(tmp_path) == {}
