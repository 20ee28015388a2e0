"""Writes past the page cache (O_DIRECT): our output is not read again soon, and guests need the cache more.

It also saves the processor time of filling the cache, and leaves fsync() nothing to wait for. Direct writes want
buffers, offsets and lengths that are whole blocks; what is not goes the ordinary way.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator, Sequence

from pybackup.core.devices.file_io import write_fully

ALIGNMENT = 4096
BUFFER = 4 << 20
"""Bytes of one aligned buffer."""
_REFUSALS = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})


class DirectWriter:
    """Writes to a file through a second descriptor, where the filesystem can.

    Fixed: the ordinary descriptor. Changing: the direct one, and the aligned buffers that are free; any thread may
    write, for list.append() and list.pop() are atomic.
    """

    def __init__(self, fd: int) -> None:
        """``fd`` stays the caller's."""
        self._fd = fd
        self._free: list[mmap.mmap] = []
        self._direct = -1
        with contextlib.suppress(OSError):
            self._direct = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)

    def write_at(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write all bytes of all buffers, one after the other, from ``offset`` on (OSError)."""
        for piece, start, size in self._pieces(offset, buffers):
            whole = size - size % ALIGNMENT if offset % ALIGNMENT == 0 else 0
            if whole:
                self._write_direct(start, memoryview(piece)[:whole])
            if size > whole:
                write_fully(self._fd, start + whole, memoryview(piece)[whole:size])

    def _pieces(self, offset: int, buffers: Sequence[memoryview]) -> Iterator[tuple[mmap.mmap, int, int]]:
        """(aligned buffer, its offset in the file, bytes in it), again and again until all is copied."""
        try:
            piece = self._free.pop()
        except IndexError:
            piece = mmap.mmap(-1, BUFFER)
        used = 0
        for buffer in buffers:
            at = 0
            while at < len(buffer):
                part = min(len(buffer) - at, BUFFER - used)
                piece[used : used + part] = buffer[at : at + part]
                at += part
                used += part
                if used == BUFFER:
                    yield piece, offset, used
                    offset += used
                    used = 0
        if used:
            yield piece, offset, used
        self._free.append(piece)

    def _write_direct(self, offset: int, content: memoryview) -> None:
        if self._direct >= 0:
            try:
                written = os.pwrite(self._direct, content, offset)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                written = 0
            # A short or refused direct write is finished the ordinary way, which also knows the reason.
            offset += written
            content = content[written:]
        write_fully(self._fd, offset, content)

    def close(self) -> None:
        """Give the second descriptor and the buffers back; the ordinary descriptor stays open."""
        self._free.clear()
        direct, self._direct = self._direct, -1
        if direct >= 0:
            os.close(direct)
