"""Old data that was saved before a guest overwrote it, on its way to the archive.

A slow archive must not stall the guest: what was saved waits here in memory, up to a limit. Where there is a fleecing
file, it takes what the memory cannot; only when both are full does the guest wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pybackup.formats.clusters import Cluster, scan

from .device import Buffer

DEFAULT_BUFFER = 64 << 20


class Saved(NamedTuple):
    """Clusters in a row, saved from one drive. ``size`` in bytes of memory; ``place`` is set if in the file."""

    drive_id: int
    first: int
    clusters: Sequence[Cluster]
    size: int
    place: int | None = None


class Overflow(Protocol):
    """Where old data goes when the memory is full: a fleecing file."""

    async def store(self, content: Buffer) -> int | None:
        """Keep the bytes; the place where, or None if there is no room for them."""
        ...

    async def load(self, place: int, size: int) -> Buffer:
        """Read the bytes back and give their room away."""
        ...


class OldData:
    """A queue with a bounded memory. Owned by the event loop.

    Fixed: the limit in bytes and the overflow. Changing: what waits, and who waits for room.
    """

    def __init__(self, limit: int = DEFAULT_BUFFER, overflow: Overflow | None = None) -> None:
        self._limit, self._overflow = limit, overflow
        self._queue: deque[Saved] = deque()
        self._in_memory = 0
        self._in_hand = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Condition()
        self.closed = False

    def __bool__(self) -> bool:
        return bool(self._queue) or self._in_hand > 0

    @property
    def in_memory(self) -> int:
        """Bytes of memory that waiting data takes."""
        return self._in_memory

    async def put(self, drive_id: int, first: int, clusters: Sequence[Cluster], content: Buffer) -> None:
        """Take clusters and the buffer they are views of; waits only when memory and file are full."""
        saved = Saved(drive_id, first, clusters, len(content))
        if self.has_room(saved.size):
            self._keep(saved)
            return
        if self._overflow is not None and (place := await self._overflow.store(content)) is not None:
            self._append(saved._replace(clusters=(), place=place))
            return
        async with self._room:
            await self._room.wait_for(lambda: self.closed or self.has_room(saved.size))
        self._keep(saved)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes fit into the memory now."""
        return self._in_memory == 0 or self._in_memory + size <= self._limit

    def _keep(self, saved: Saved) -> None:
        self._in_memory += saved.size
        self._append(saved)

    def _append(self, saved: Saved) -> None:
        if not self.closed:
            self._queue.append(saved)
            self._changed.set()

    async def wait(self) -> None:
        """Return when something waits, or the queue is closed."""
        while not self._queue and not self.closed:
            self._changed.clear()
            await self._changed.wait()

    async def take(self) -> Saved:
        """The oldest entry, with its clusters; there must be one. Its memory is free after release()."""
        saved = self._queue.popleft()
        self._in_hand += 1
        if saved.place is None or self._overflow is None:
            return saved
        content = await self._overflow.load(saved.place, saved.size)
        return saved._replace(clusters=scan(content))

    async def release(self, saved: Saved) -> None:
        """The entry has reached the archive: its memory is free."""
        if saved.place is None:
            self._in_memory -= saved.size
        self._in_hand -= 1
        async with self._room:
            self._room.notify_all()

    async def wait_until_empty(self) -> None:
        """Return at a moment when all that was put has reached the archive."""
        async with self._room:
            await self._room.wait_for(lambda: not self)

    async def close(self) -> None:
        """Drop everything; nobody waits any longer."""
        self.closed = True
        self._queue.clear()
        self._changed.set()
        async with self._room:
            self._room.notify_all()
