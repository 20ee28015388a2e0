"""Writes past the page cache (O_DIRECT): our output is not read again soon, and guests need the cache more.

It also saves the processor time of filling the cache, and leaves fsync() nothing to wait for. Direct writes want
buffers, offsets and lengths that are whole blocks; what is not is copied, or goes the ordinary way.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator, Sequence

from .direct_open import open_direct
from .file_io import write_fully
from .unfilled import ALIGNMENT, is_aligned

BUFFER = 4 << 20
"""Bytes of one aligned buffer."""
MOST_BUFFERS = 1024
"""What the kernel takes in one call (IOV_MAX)."""
_REFUSALS = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})


class AlignedWriter:
    """Writes page-aligned memory to a file, past the page cache where the filesystem can.

    Fixed: the ordinary descriptor, and the direct one. Any thread may write.
    """

    def __init__(self, fd: int) -> None:
        """``fd`` stays the caller's."""
        self._fd = fd
        self._direct = open_direct(fd, os.O_WRONLY)

    def write_all_at(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """Write at once what is aligned all of it (OSError); False where it is not, or was not written whole."""
        if self._direct < 0 or offset % ALIGNMENT or not 0 < len(buffers) <= MOST_BUFFERS:
            return False
        return all(map(is_aligned, buffers)) and self._pwritev(offset, buffers) == sum(map(len, buffers))

    def _pwritev(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """As os.pwritev(), past the page cache; 0 where that is refused."""
        try:
            return os.pwritev(self._direct, buffers, offset)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            return 0

    def write_at(self, offset: int, content: memoryview) -> None:
        """Write all bytes of aligned memory from ``offset`` on (OSError)."""
        whole = len(content) - len(content) % ALIGNMENT if offset % ALIGNMENT == 0 else 0
        done = 0
        if whole and self._direct >= 0:
            done = self._pwritev(offset, [content[:whole]])
        # A short or refused direct write is finished the ordinary way, which also knows the reason.
        if done < len(content):
            write_fully(self._fd, offset + done, content[done:])
            if done < whole:
                _begin_writeback(self._fd, offset + done, len(content) - done)

    def close(self) -> None:
        """Give the direct descriptor back; the ordinary one stays open."""
        direct, self._direct = self._direct, -1
        if direct >= 0:
            os.close(direct)


def _begin_writeback(fd: int, offset: int, length: int) -> None:
    # DONTNEED begins to write out dirty pages and drops clean ones, so that the final fsync has little left. Of our
    # own output nobody needs the pages; what a filesystem answers to advice is no failure of ours.
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


class DirectWriter:
    """Writes any memory to any place of a file; what is not aligned by way of buffers that are.

    Changing: the buffers that are free; any thread may write, for list.append() and list.pop() are atomic.
    """

    def __init__(self, fd: int) -> None:
        """``fd`` stays the caller's."""
        self._writer = AlignedWriter(fd)
        self._free: list[mmap.mmap] = []

    def write_at(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write all bytes of all buffers, one after the other, from ``offset`` on (OSError)."""
        if self._writer.write_all_at(offset, buffers):
            return
        for piece, start, size in self._pieces(offset, buffers):
            self._writer.write_at(start, memoryview(piece)[:size])

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

    def close(self) -> None:
        """Give descriptor and buffers back."""
        self._free.clear()
        self._writer.close()
