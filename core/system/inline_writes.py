"""Small writes made in the event loop, where they are cheaper than the way to a thread and back.

A buffered write of 4 KiB is a copy into the page cache: 1 to 3 us, up to 13 where ext4 keeps the file in large folios
(all measured on Linux 6.18); the way to a thread and back costs 40 to 120. The kernel can promise not to wait
(RWF_NOWAIT) only on some filesystems: XFS and btrfs do, ext4 and tmpfs answer EOPNOTSUPP. And those that can answer
EAGAIN where nothing would be waited for: XFS at the first write of each tick of its clock, for it has a time to note.
Where there is no promise, a small write can still stall the loop in these ways, and this is done about each:

- the filesystem is remote or another program's (NFS, FUSE): they know no RWF_NOWAIT for reads either, which is
  asked at the first write, and then every write goes to a thread, unless the file lies in memory;
- a part of a page is written that must be read first: only whole pages, or pages that are in the cache;
- the inode's lock is held or pages are under writeback, by a flush, discard or zeroing of ours: paused();
- too much of memory is dirty and the kernel makes writers sleep (balance_dirty_pages), or the disk is just slow:
  after a write that took longer than SLOW, the next SKIPPED without a promise go to threads, so one stall is felt once.

What is left is one stall of the loop now and then, on a machine that is short of memory or disk.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from pybackup.core.device import Buffer

from .file_io import write_fully
from .in_memory import lies_in_memory

MOST = 65536
"""Bytes of the largest write made inline: its copy takes about 10 us."""

SLOW = 0.002
"""Seconds after which a write has waited for something: 100 times what the copy takes."""

SKIPPED = 512
"""Writes sent to threads after a slow one."""

_NO_NOWAIT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class _Place(Enum):
    """Where a file lies: that decides for whom its pages would have to be read."""

    MEMORY = "memory"
    DISK = "disk"
    ELSEWHERE = "elsewhere"
    """With another machine or program, which may take its time."""


class InlineWrites:
    """Decides which writes to a descriptor are made at once, and makes them.

    Fixed: the descriptor and the clock. Changing, on the event loop's thread only: what is known of the filesystem, how
    many long operations are under way, how many writes are still to skip.
    """

    def __init__(self, fd: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: gives seconds."""
        self._fd = fd
        self._clock = clock
        self._nowait_writes = True
        self._place: _Place | None = None
        self._long_operations = 0
        self._to_skip = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make no inline writes inside: the caller runs something that keeps writers waiting."""
        self._long_operations += 1
        try:
            yield
        finally:
            self._long_operations -= 1

    def stop(self) -> None:
        """Make no inline writes any more: the descriptor is about to be closed."""
        self._long_operations += 1

    def write(self, offset: int, data: Buffer) -> bool:
        """Write all of ``data`` and return True, or nothing and return False. Raises OSError."""
        length = len(data)
        if length > MOST or self._long_operations:
            return False
        if self._nowait_writes and self._write_nowait(offset, data):
            return True
        if self._to_skip:
            self._to_skip -= 1
            return False
        if not self._needs_no_read(offset, length):
            return False
        begun = self._clock()
        done = os.pwrite(self._fd, data, offset)
        if self._clock() - begun > SLOW:
            self._to_skip = SKIPPED
        if done < length:
            self._write_rest(offset, data, done)
        return True

    def _write_rest(self, offset: int, data: Buffer, done: int) -> None:
        """The kernel took a part: write the rest, or learn why not (often ENOSPC)."""
        write_fully(self._fd, offset + done, memoryview(data)[done:])

    def _write_nowait(self, offset: int, data: Buffer) -> bool:
        """Write if the kernel promises not to wait."""
        try:
            done = os.pwritev(self._fd, [data], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_NOWAIT:
                raise
            self._nowait_writes = False
            return False
        if done < len(data):
            self._write_rest(offset, data, done)
        return True

    def _needs_no_read(self, offset: int, length: int) -> bool:
        """True when every page that is written in part is in memory, and nobody else is asked for it."""
        if self._place is None:
            self._place = self._find_place()
        if self._place is not _Place.DISK or (offset | length) % mmap.PAGESIZE == 0:
            return self._place is not _Place.ELSEWHERE
        edges = {edge - edge % mmap.PAGESIZE for edge in (offset, offset + length) if edge % mmap.PAGESIZE}
        return not any(map(self._cache_state, edges))

    def _find_place(self) -> _Place:
        if lies_in_memory(self._fd):
            return _Place.MEMORY
        return _Place.ELSEWHERE if self._cache_state(0) in _NO_NOWAIT else _Place.DISK

    def _cache_state(self, page: int) -> int:
        """0 when the page at this offset is in the cache, else the errno of a read that must not wait."""
        try:
            os.preadv(self._fd, [bytearray(1)], page, os.RWF_NOWAIT)
        except OSError as error:
            return error.errno or errno.EIO
        return 0
