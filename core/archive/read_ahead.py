"""Reads on in a remote file: large ranges, some of them on the way while the one before is used.

The first ranges are small, so that who wants only the beginning pays for little more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

FIRST, LARGEST = 64 << 10, 2 << 20
"""Bytes of the first range, and of the ranges that follow when it has doubled often enough."""
AHEAD = 4
"""Ranges on the way; so at most 10 MiB are held."""


class ReadAhead:
    """Fixed: the file. Changing, by the one thread that reads: the position, and what is on the way."""

    def __init__(self, pread: Callable[[int, int], bytes], size: int) -> None:
        """``pread`` as of ArchiveIndex; ``size`` in bytes."""
        self._ranges = (partial(pread, offset, length) for offset, length in _growing(size))
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="pybackup-remote")
        self._ahead: deque[Future[bytes]] = deque()
        self._taken = 0
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, none at the end; OSError as pread()."""
        if not self._rest:
            self._order()
            if not self._ahead:
                return b""
            self._rest = memoryview(self._ahead.popleft().result())
            self._taken += 1
        part, self._rest = self._rest[:size], self._rest[size:]
        return bytes(part)

    def _order(self) -> None:
        """Nothing is ordered ahead of the first range, and one more after each that was wanted."""
        while len(self._ahead) < min(AHEAD, self._taken + 1) and (one := next(self._ranges, None)) is not None:
            self._ahead.append(self._pool.submit(one))

    def close(self) -> None:
        """Wait for what is on the way, which the file should have been told to stop."""
        self._pool.shutdown(cancel_futures=True)


def _growing(size: int) -> Iterator[tuple[int, int]]:
    offset, length = 0, FIRST
    while offset < size:
        yield offset, min(length, size - offset)
        offset += length
        length = min(2 * length, LARGEST)


class Sized(NamedTuple):
    """A call, and about how many bytes of memory it and what it returns take."""

    size: int
    call: Callable[[], Any]


def in_order(pool: ThreadPoolExecutor, calls: Iterable[Sized], ahead: int, most: int) -> Iterator[Any]:
    """What the calls return, in their order; so many are made ahead of the one that is waited for.

    Fewer, where they take more than ``most`` bytes together.
    """
    waiting: deque[tuple[int, Future[Any]]] = deque()
    size = 0
    try:
        for one in calls:
            while waiting and size + one.size > most:
                taken, future = waiting.popleft()
                yield future.result()
                size -= taken
            waiting.append((one.size, pool.submit(one.call)))
            size += one.size
            if len(waiting) > ahead:
                taken, future = waiting.popleft()
                yield future.result()
                size -= taken
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        for _, future in waiting:
            future.cancel()
