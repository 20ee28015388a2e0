"""Reads of a disk at rest past its page cache (O_DIRECT).

Copying a gigabyte out of the page cache takes 0.15 s of a processor, having it filled first 2 s (Linux 6.18 in a
virtual machine); a direct read takes 0.03 s, and leaves the cache to the guests. Only where a disk is slow, and what
is wanted lies in the cache already, is the cache the better source.
"""

from __future__ import annotations

import os
import time

from .direct_open import open_direct
from .page_cache import cached_pages
from .unfilled import ALIGNMENT, unfilled_aligned

SMALLEST = 16 << 10
"""Bytes: fewer are read the ordinary way."""
SLOW = 256 << 20
"""Bytes a second of one read: a job has three under way, so a disk that gives less would be what it waits for."""


class DirectReads:
    """Reads of one descriptor. Any thread may read.

    Fixed: the descriptor of its own, until close(). Changing: the sums of bytes and seconds; they serve a guess, so an
    update that is lost because two threads make one at once does not matter.
    """

    def __init__(self, fd: int) -> None:
        """``fd`` stays the caller's."""
        self._fd = fd
        self._direct = open_direct(fd, os.O_RDONLY)
        self._bytes = 0
        self._seconds = 0.0

    def read(self, offset: int, length: int) -> bytearray | None:
        """Read exactly ``length`` bytes; None for what has to be read the ordinary way, which also knows the reason."""
        if self._direct < 0 or length < SMALLEST or offset % ALIGNMENT or length % ALIGNMENT:
            return None
        if self._is_slow and 0 not in cached_pages(self._fd, offset, length):
            return None
        data = unfilled_aligned(length)
        begun = time.monotonic()
        try:
            done = os.preadv(self._direct, [data], offset)
        except OSError:
            return None
        self._seconds += time.monotonic() - begun
        self._bytes += length
        return data if done == length else None

    @property
    def _is_slow(self) -> bool:
        return self._bytes < SLOW * self._seconds

    def close(self) -> None:
        """Give the descriptor of its own back, when no read is under way any more."""
        direct, self._direct = self._direct, -1
        if direct >= 0:
            os.close(direct)
