"""A disk that is a regular file or a block device, byte for byte.

Reads, writes and everything else that may block go to a thread pool. The two short ways answer in the event loop:
- read_now() asks with RWF_NOWAIT, so only what lies in the page cache is answered, or on a filesystem in memory;
- write_now() is explained in inline_writes.py.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

from pybackup.core.device import CLUSTER_SIZE, BlockStatus, Buffer
from pybackup.core.errors import PybackupError, SourceChangedError, SourceError
from pybackup.core.system import fallocate
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.core.system.direct_read import DirectReads
from pybackup.core.system.file_io import read_fully, write_fully, write_zero_bytes
from pybackup.core.system.in_memory import lies_in_memory
from pybackup.core.system.inline_writes import InlineWrites
from pybackup.core.system.page_cache import CacheHygiene
from pybackup.core.system.sparse_map import all_data, file_extents
from pybackup.core.system.unfilled import unfilled_aligned

READ_NOW_MOST = 1 << 20
"""Bytes that read_now() copies at most: a larger copy is work for a thread (about 0.1 ms a MiB)."""

_NO_NOWAIT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFSOCK: "a socket",
}


class Fingerprint(NamedTuple):
    """What changes when a regular file is written: compared before and after a backup (bytes, ns, ns, numbers)."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    filesystem: int


def fingerprint_of(info: os.stat_result) -> Fingerprint | None:
    """What to compare to see a change; None for a block device, which does not tell."""
    if stat.S_ISBLK(info.st_mode):
        return None
    return Fingerprint(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev)


class RawDevice:
    """A regular file or block device; implements BlockDevice. Made by open().

    Fixed: everything but the members that start with ``_can_``, which the event loop's thread or a pool thread
    turns off, once, when the kernel says that a call is not supported, and the flags of read_now(), likewise.
    Concurrent requests are fine; overlapping ones are the caller's to order.
    """

    def __init__(self, fd: int, name: str, size: int, block: int, writable: bool, calls: BlockingCalls) -> None:
        """``fd`` belongs to the device from now on; ``block``: bytes in a logical block, 0 for a regular file."""
        self._fd = fd
        self._name = name
        self._size = size
        self._block = block
        self._writable = writable
        self._calls = calls
        self._inline = InlineWrites(fd)
        self._direct: DirectReads | None = None
        self._hygiene: CacheHygiene | None = None
        self._can_read_now = True
        self._read_now_flags = os.RWF_NOWAIT
        self._can_punch = True
        self._can_zero = True

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        name: str | None = None,
        executor: ThreadPoolExecutor | None = None,
        drop_cache: bool = False,
        failure: type[PybackupError] = SourceError,
    ) -> Self:
        """Open a regular file or block device.

        ``executor``: threads shared with others (None: four of its own). ``drop_cache``: leave the page cache
        as it is: read past it, or give back what a read has filled, and only that. Raises ``failure`` with the reason
        when it cannot be opened, is neither file nor block device, or is empty.
        """
        path = os.fspath(path)
        try:
            fd = _open_disk(path, writable)
        except OSError as error:
            raise failure(f"cannot open {path}: {error.strerror}") from error
        return cls.adopt(fd, name or path, writable=writable, executor=executor, drop_cache=drop_cache, failure=failure)

    @classmethod
    def adopt(
        cls,
        fd: int,
        name: str,
        *,
        writable: bool = False,
        executor: ThreadPoolExecutor | None = None,
        drop_cache: bool = False,
        failure: type[PybackupError] = SourceError,
    ) -> Self:
        """Make a device of an open descriptor, which belongs to it from now on, also if this fails. As open()."""
        try:
            device = cls(fd, name, _disk_size(fd), _block_size(fd), writable, BlockingCalls(executor))
        except OSError as error:
            os.close(fd)
            raise failure(f"cannot use {name}: {error.strerror}") from error
        if drop_cache:
            device._direct, device._hygiene = DirectReads(fd), CacheHygiene(fd)
        return device

    @property
    def size(self) -> int:
        """The size in bytes when it was opened."""
        return self._size

    @property
    def name(self) -> str:
        """What the user called it."""
        return self._name

    @property
    def read_only(self) -> bool:
        """True unless opened with ``writable``."""
        return not self._writable

    @property
    def is_block_device(self) -> bool:
        """True for a block device, False for a regular file."""
        return self._block > 0

    def fileno(self) -> int:
        """The open descriptor, for locks and for questions to the kernel."""
        return self._fd

    def fingerprint(self) -> Fingerprint | None:
        """What to compare to see a change; None for a block device, which does not tell. Raises OSError."""
        return fingerprint_of(os.fstat(self._fd))

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read exactly ``length`` bytes.

        Raises OSError, or SourceChangedError when the file ends before the range does.
        """
        self._on_disk(offset, length)
        data = await self._calls.run(self._read, offset, length)
        if len(data) < length:
            raise self._shrank()
        return data

    async def pwrite(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``. Raises OSError: EPERM when read-only, EINVAL for a range that is not on the disk."""
        self._may_change(offset, len(data))
        await self._calls.run(write_fully, self._fd, offset, data)

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        """Make the range read as zeros: by a hole, else by reserved space, else by writing zeros.

        Raises OSError as pwrite() does; EOPNOTSUPP when ``fast_only`` and zeros would have to be written.
        """
        self._may_change(offset, length)
        if length:
            with self._inline.paused():
                await self._calls.run(self._zero, offset, length, may_punch, fast_only)

    async def discard(self, offset: int, length: int) -> None:
        """Give the space back where that is possible, else do nothing. Raises OSError as pwrite() does."""
        self._may_change(offset, length)
        if length:
            with self._inline.paused():
                await self._calls.run(self._discard, offset, length)

    async def flush(self) -> None:
        """fdatasync(2): return when all writes answered before are durable. Raises OSError."""
        if self._writable:
            with self._inline.paused():
                await self._calls.run(os.fdatasync, self._fd)

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """Describe the range; a block device is all data. Raises OSError, SourceChangedError when the file shrank."""
        self._on_disk(offset, length)
        if self.is_block_device:
            return all_data(offset, length)
        return await self._calls.run(self._file_extents, offset, length)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Read what lies in the page cache, up to READ_NOW_MOST bytes; None when any of it does not."""
        self._on_disk(offset, length)
        if not self._can_read_now or length > READ_NOW_MOST:
            return None
        # Old data is read in clusters, and may go on to a fleecing file past the page cache.
        data = unfilled_aligned(length) if length >= CLUSTER_SIZE else bytearray(length)
        try:
            return data if os.preadv(self._fd, [data], offset, self._read_now_flags) == length else None
        except OSError as error:
            if error.errno in _NO_NOWAIT:
                # A file in memory need not be asked not to wait.
                self._can_read_now = self._read_now_flags != 0 and lies_in_memory(self._fd)
                self._read_now_flags = 0
            return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write a small request that the page cache takes at once. Raises OSError as pwrite() does."""
        self._may_change(offset, len(data))
        return self._inline.write(offset, data)

    async def close(self) -> None:
        """Wait for what is under way and close; a second close does nothing. Raises OSError."""
        if self._fd < 0:
            return
        await self._calls.close()
        self.close_unused()

    def close_unused(self) -> None:
        """Close a device that was asked for nothing but its descriptor: there is nothing to wait for."""
        fd, self._fd = self._fd, -1
        self._inline.stop()
        if self._direct:
            self._direct.close()
        os.close(fd)

    def _read(self, offset: int, length: int) -> Buffer:
        if self._direct and (data := self._direct.read(offset, length)) is not None:
            return data
        if self._hygiene:
            return self._hygiene.read(offset, length)
        return read_fully(self._fd, offset, length)

    def _zero(self, offset: int, length: int, may_punch: bool, fast_only: bool) -> None:
        """Zero the whole blocks without writing, and write what is left at both edges (block devices only)."""
        start, end = self._whole_blocks(offset, offset + length)
        if start < end and not self._zero_blocks(start, end - start, may_punch, fast_only):
            if fast_only:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), self._name)
            start = end = offset
        write_zero_bytes(self._fd, offset, start - offset)
        write_zero_bytes(self._fd, end, offset + length - end)

    def _zero_blocks(self, offset: int, length: int, may_punch: bool, fast_only: bool) -> bool:
        """Zero without writing from here; False, and nothing changed, when the kernel cannot."""
        if may_punch and self._can_punch:
            self._can_punch = _supported(fallocate.punch_hole, self._fd, offset, length)
            if self._can_punch:
                return True
        if self._can_zero and not (fast_only and self.is_block_device):
            self._can_zero = _supported(fallocate.zero_range, self._fd, offset, length)
            return self._can_zero
        return False

    def _discard(self, offset: int, length: int) -> None:
        start, end = self._whole_blocks(offset, offset + length)
        call = fallocate.discard_blocks if self.is_block_device else fallocate.punch_hole
        if start < end:
            _supported(call, self._fd, start, end - start)

    def _whole_blocks(self, start: int, end: int) -> tuple[int, int]:
        """The part of a range that consists of whole logical blocks; (end, end) when there is none."""
        block = self._block or 1
        first, behind = -(-start // block) * block, end - end % block
        return (first, behind) if first < behind else (end, end)

    def _file_extents(self, offset: int, length: int) -> list[BlockStatus]:
        fd = self._fd
        extents = file_extents(lambda position, whence: os.lseek(fd, position, whence), offset, length)
        if os.fstat(fd).st_size < self._size:
            raise self._shrank()
        return extents

    def _shrank(self) -> SourceChangedError:
        return SourceChangedError(f"{self._name} shrank while it was read: it had {self._size} bytes when opened")

    def _may_change(self, offset: int, length: int) -> None:
        if not self._writable:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), self._name)
        self._on_disk(offset, length)

    def _on_disk(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self._size:
            raise OSError(errno.EINVAL, f"no bytes {offset} to {offset + length}: the size is {self._size}", self._name)


def _supported(call: Callable[[int, int, int], None], fd: int, offset: int, length: int) -> bool:
    """Make the call; False when file, device or kernel do not have it. Raises OSError for anything else."""
    try:
        call(fd, offset, length)
    except OSError as error:
        if error.errno in fallocate.UNSUPPORTED:
            return False
        raise
    return True


def _open_disk(path: str, writable: bool) -> int:
    """Open what may be a disk, and look before: opening a FIFO can hang, a character device can do anything."""
    _check_kind(os.stat(path).st_mode)
    return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no disk")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file or block device")


def _disk_size(fd: int) -> int:
    """The size in bytes; by seeking, for a block device's st_size is 0. Raises OSError when it is empty."""
    size = os.lseek(fd, 0, os.SEEK_END)
    if size == 0:
        raise OSError(errno.ENODATA, "it is empty (0 bytes), and a disk has at least one byte")
    return size


def _block_size(fd: int) -> int:
    """Bytes in a logical block of a block device; 0 for a regular file."""
    return fallocate.logical_block_size(fd) if stat.S_ISBLK(os.fstat(fd).st_mode) else 0
