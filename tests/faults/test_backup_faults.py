"""Sources and targets that fail at every step: the right error, nothing left behind, the source untouched."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archives import decode
from doubles import CheckedDevice, FaultyDevice

from pybackup.core.archive.create import ArchiveOptions, make_writer
from pybackup.core.archive.stream import ArchiveStream
from pybackup.core.device import BlockDevice, Buffer
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.endpoints.targets import ExistingDisk, NewFile
from pybackup.core.errors import CancelledError, SourceError, TargetError, TargetFullError
from pybackup.core.jobs.backup import BackupJob
from pybackup.core.jobs.copying import Drive
from pybackup.core.jobs.restore import RestoreJob
from pybackup.core.sinks.file import FileSink
from pybackup.core.sinks.partial_file import PartialFile
from pybackup.core.system.direct_write import AlignedWriter

NOISE = random.Random(21)
DISK = NOISE.randbytes(900_001) + bytes(5_000_000) + NOISE.randbytes(5000)
OPTIONS = ArchiveOptions(uuid=bytes(16), created=0, level=1, frame_size=65536, threads=2)


def backup(device: BlockDevice, sink: FileSink, *, skip_unreadable: bool = False) -> BackupJob:
    """Run a backup of one drive; the job, or what it raises."""

    async def run() -> BackupJob:
        with ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(2) as scanners:
            writer = make_writer([("disk", device.size)], [], OPTIONS, sink, pool)
            drive = Drive(1, "disk", CheckedDevice(device))
            job = BackupJob([drive], writer, scanners, skip_unreadable=skip_unreadable)
            await job.run()
            return job

    return asyncio.run(run())


class FailingSink(FileSink):
    """Fails at its write number ``number``."""

    def __init__(self, path: Path, number: int | None, code: int) -> None:
        super().__init__(str(path), piece=65536)
        self._number, self._code = number, code
        self.writes = 0

    def _write_out(self, piece: mmap.mmap, offset: int, size: int) -> mmap.mmap:
        self.writes += 1
        if self.writes - 1 != self._number:
            return super()._write_out(piece, offset, size)
        kept, self._writer = self._writer, BrokenWriter(self._code)
        try:
            return super()._write_out(piece, offset, size)
        finally:
            self._writer = kept


class BrokenWriter(AlignedWriter):
    """Writes nothing."""

    def __init__(self, code: int) -> None:
        self._code = code

    def write_at(self, offset: int, content: memoryview) -> None:
        raise OSError(self._code, os.strerror(self._code))


def writes_of_a_good_run(tmp_path: Path) -> int:
    sink = FailingSink(tmp_path / "good.vma", None, 0)
    backup(MemoryDevice(DISK), sink)
    assert decode((tmp_path / "good.vma").read_bytes()).drives == {"disk": DISK}
    (tmp_path / "good.vma").unlink()
    return sink.writes


@pytest.mark.parametrize("code, error", [(errno.ENOSPC, TargetFullError), (errno.EPIPE, TargetError)])
def test_a_sink_that_fails_at_any_write_leaves_nothing(tmp_path: Path, code: int, error: type[Exception]) -> None:
    writes = writes_of_a_good_run(tmp_path)
    assert writes >= 4
    for number in range(writes):
        source = MemoryDevice(DISK)
        with pytest.raises(error, match=r"cannot write .*out\.vma"):
            backup(source, FailingSink(tmp_path / "out.vma", number, code))
        assert list(tmp_path.iterdir()) == []
        assert source.contents() == DISK


def reads_of_a_good_run(tmp_path: Path) -> int:
    device = FaultyDevice(MemoryDevice(DISK))
    backup(device, FileSink(str(tmp_path / "good.vma")))
    return device.calls["read"]


def test_a_read_error_anywhere_ends_the_backup_and_leaves_nothing(tmp_path: Path) -> None:
    reads = reads_of_a_good_run(tmp_path)
    (tmp_path / "good.vma").unlink()
    for number in range(reads):
        device = FaultyDevice(MemoryDevice(DISK), reads="r" * number + "E")
        with pytest.raises(SourceError, match="cannot read drive disk at byte") as caught:
            backup(device, FileSink(str(tmp_path / "out.vma")))
        assert caught.value.exit_code == 3
        assert list(tmp_path.iterdir()) == []


class BadBlocks(MemoryDevice):
    """Cannot be read where a bad range is touched."""

    def __init__(self, content: bytes, bad: Sequence[tuple[int, int]]) -> None:
        super().__init__(content)
        self._bad = bad

    async def pread(self, offset: int, length: int) -> Buffer:
        if any(start < offset + length and offset < start + size for start, size in self._bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return await super().pread(offset, length)


@pytest.mark.parametrize(
    "bad, lost",
    [
        ([(0, 1)], [(0, 512)]),
        ([(4095, 2)], [(3584, 1024)]),
        ([(65536, 65536)], [(65536, 65536)]),
        ([(10_000, 1), (30_000, 1)], [(9728, 512), (29_696, 512)]),
        ([(10_000, 1), (11_000, 1)], [(9728, 1536)]),
        ([(len(DISK) - 1, 1)], [((len(DISK) - 1) // 512 * 512, len(DISK) - (len(DISK) - 1) // 512 * 512)]),
        ([(0, 900_001)], [(0, 900_096)]),
    ],
)
def test_skipping_what_cannot_be_read_lists_exactly_that(
    tmp_path: Path, bad: list[tuple[int, int]], lost: list[tuple[int, int]]
) -> None:
    job = backup(BadBlocks(DISK, bad), FileSink(str(tmp_path / "out.vma")), skip_unreadable=True)
    assert [(one.offset, one.length) for one in job.lost] == lost
    expected = bytearray(DISK)
    for offset, length in lost:
        expected[offset : offset + length] = bytes(length)
    read = decode((tmp_path / "out.vma").read_bytes())
    assert read.drives == {"disk": bytes(expected)}
    assert read.stream.about is not None
    assert read.stream.about["unreadable"] == [{"drive": "disk", "offset": at, "length": size} for at, size in lost]


# -- restore --------------------------------------------------------------------------------------------------------


def archive_of(tmp_path: Path) -> bytes:
    backup(MemoryDevice(DISK), FileSink(str(tmp_path / "out.vma")))
    content = (tmp_path / "out.vma").read_bytes()
    (tmp_path / "out.vma").unlink()
    return content


def restore(content: bytes, target: NewFile | ExistingDisk) -> None:
    async def run() -> None:
        rest = [content]
        with ThreadPoolExecutor(1) as pool:
            stream = ArchiveStream(lambda _: rest.pop() if rest else b"", "out.vma", pool)
            await RestoreJob(stream, {stream.header.drives[0]: target}).run()

    asyncio.run(run())


@pytest.mark.parametrize("letter, error", [("N", TargetFullError), ("E", TargetError)])
def test_a_disk_that_fails_at_any_write_fails_the_restore(tmp_path: Path, letter: str, error: type[Exception]) -> None:
    content = archive_of(tmp_path)
    good = FaultyDevice(MemoryDevice(len(DISK)))
    restore(content, ExistingDisk(CheckedDevice(good)))
    assert good.inner.contents() == DISK  # type: ignore[attr-defined]
    for number in range(good.calls["write"]):
        device = FaultyDevice(MemoryDevice(len(DISK)), writes="w" * number + letter)
        with pytest.raises(error, match="cannot write"):
            restore(content, ExistingDisk(CheckedDevice(device)))


def test_an_existing_disk_gets_its_zeros_too(tmp_path: Path) -> None:
    device = MemoryDevice(b"\xff" * (len(DISK) + 10))
    restore(archive_of(tmp_path), ExistingDisk(CheckedDevice(device)))
    assert device.contents() == DISK + b"\xff" * 10


def test_a_disk_that_is_too_small_is_left_alone(tmp_path: Path) -> None:
    device = MemoryDevice(b"\xff" * (len(DISK) - 1))
    with pytest.raises(TargetError, match="too small"):
        restore(archive_of(tmp_path), ExistingDisk(CheckedDevice(device)))
    assert device.contents() == b"\xff" * (len(DISK) - 1)


def test_a_commit_of_a_restored_file_that_fails_leaves_what_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive_of(tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TargetError, match="cannot finish"):
        restore(content, NewFile(str(tmp_path / "back"), replace=False))
    assert [path.name for path in tmp_path.iterdir()] == ["back.partial"]


@pytest.mark.parametrize("step, is_too_late", [("sync", False), ("take_name", True)])
def test_a_cancel_comes_too_late_when_the_archive_gets_its_name(
    tmp_path: Path, step: str, is_too_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has its name is there, and the run must not say otherwise."""
    real = getattr(PartialFile, step)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(2) as pool:
            writer = make_writer([("disk", len(DISK))], [], OPTIONS, FileSink(str(tmp_path / "out.vma")), pool)
            job = BackupJob([Drive(1, "disk", MemoryDevice(DISK))], writer, pool)

            def cancel_meanwhile(file: PartialFile) -> None:
                told = threading.Event()
                loop.call_soon_threadsafe(lambda: (job.cancel(), told.set()))
                assert is_too_late or told.wait(30)
                real(file)

            monkeypatch.setattr(PartialFile, step, cancel_meanwhile)
            await job.run()

    if is_too_late:
        asyncio.run(test())
        assert decode((tmp_path / "out.vma").read_bytes()).drives == {"disk": DISK}
    else:
        with pytest.raises(CancelledError):
            asyncio.run(test())
        assert list(tmp_path.iterdir()) == []
