"""Reading a disk without pushing other things out of the page cache.

A backup reads everything once. Pages that were in the cache before belong to somebody's working set and stay;
pages that our read has brought in are dropped right after it. mincore(2) tells them apart: unlike a read with
RWF_NOWAIT it does not start a readahead. Readahead is turned off (POSIX_FADV_RANDOM), for a page that was read
ahead would look like somebody else's the next time; our requests are long enough without it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

from .file_io import read_fully

POSIX_FADV_NOREUSE = 5
"""Since Linux 6.3: our reads do not make pages look used (fadvise64(2))."""

_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


class CacheHygiene:
    """Reads of a descriptor that leave the page cache as it was. Nothing changes after construction."""

    def __init__(self, fd: int) -> None:
        """Turn readahead off for ``fd``, which stays the caller's."""
        self._fd = fd
        for advice in (os.POSIX_FADV_RANDOM, POSIX_FADV_NOREUSE):
            os.posix_fadvise(fd, 0, 0, advice)

    def read(self, offset: int, length: int) -> bytes:
        """Read like read_fully(), then drop the pages that were not in the cache before. Raises OSError."""
        if length == 0:
            return b""
        start = offset - offset % mmap.PAGESIZE
        cached = cached_pages(self._fd, start, offset + length - start)
        data = read_fully(self._fd, offset, length)
        for first, behind in _absent_runs(cached):
            begin, count = start + first * mmap.PAGESIZE, (behind - first) * mmap.PAGESIZE
            os.posix_fadvise(self._fd, begin, count, os.POSIX_FADV_DONTNEED)
        return data


def cached_pages(fd: int, start: int, length: int) -> bytes:
    """One byte a page from ``start``, a multiple of the page size: 1 when it is in the page cache, else 0.

    All 1 when the kernel will not say: it tells only who owns or may write the file.
    """
    pages = -(-length // mmap.PAGESIZE)
    answer = ctypes.create_string_buffer(pages)
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
    if address == _MAP_FAILED:
        return b"\1" * pages
    failed = _libc.mincore(address, length, answer)
    _libc.munmap(address, length)
    return b"\1" * pages if failed else answer.raw


def _absent_runs(cached: bytes) -> Iterator[tuple[int, int]]:
    """The runs of pages (first, behind) that were not in the cache."""
    first = cached.find(0)
    while first >= 0:
        behind = cached.find(1, first)
        if behind < 0:
            behind = len(cached)
        yield first, behind
        first = cached.find(0, behind)
