"""Old data that was saved before a guest overwrote it, on its way to the archive.

A slow archive must not stall the guest: what was saved waits here in memory, up to a limit. Where there is a fleecing
file, what came last is moved there as soon as the memory is half full; only when both are full does the guest wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pybackup.core.device import CLUSTER_SIZE, Buffer
from pybackup.formats.vma_layout import CLUSTERS_PER_EXTENT

DEFAULT_BUFFER = 64 << 20
BATCH = CLUSTERS_PER_EXTENT * CLUSTER_SIZE
"""Bytes handed on, or moved to the file, at once; about."""

LEAST_BESIDE_FILE = 8 << 20
"""Bytes of memory below which a file is of no use: a batch that the archive does not take would be all of it."""


class Saved(NamedTuple):
    """The content of clusters in a row, saved from one drive; the last may be partial."""

    drive_id: int
    first: int
    content: Buffer


class Overflow(Protocol):
    """Where old data goes when the memory is full: a fleecing file."""

    async def store(self, contents: Sequence[Buffer]) -> int | None:
        """Keep the bytes of all in a row; the place where, or None if there is no room for them."""
        ...

    async def load(self, place: int, size: int) -> Buffer:
        """Read the bytes back and give their room away."""
        ...


class _Moved(NamedTuple):
    """A batch in the file: its place, and for each entry drive id, first cluster and size in bytes."""

    place: int
    entries: Sequence[tuple[int, int, int]]

    @property
    def size(self) -> int:
        return sum(size for _, _, size in self.entries)


class _Waiting(NamedTuple):
    """Who waits for so many bytes of room."""

    size: int
    turn: asyncio.Future[None]


class OldData:
    """A queue with a bounded memory. Owned by the event loop.

    Fixed: the limit in bytes and the overflow. Changing: what waits in memory and in the file, what is in hand (taken
    and not yet released), what is reserved (counted as memory already), and who waits for room.
    """

    def __init__(self, limit: int = DEFAULT_BUFFER, overflow: Overflow | None = None) -> None:
        self._limit, self._overflow = limit, overflow
        self._queue: deque[Saved] = deque()
        self._moved: deque[_Moved] = deque()
        self._in_memory = 0
        self._in_hand = 0
        self._waiting: deque[_Waiting] = deque()
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self.closed = False

    @property
    def is_empty(self) -> bool:
        """Whether all that was put has reached the archive."""
        return not self._queue and not self._moved and not self._in_hand

    @property
    def in_memory(self) -> int:
        """Bytes of memory that waiting data takes, and that is reserved for such."""
        return self._in_memory

    def has_room(self, size: int) -> bool:
        """Whether so many bytes fit into the memory now, and nobody waited for room before.

        Whatever its size, one entry always fits.
        """
        return not self._waiting and self._fits(size)

    def _fits(self, size: int) -> bool:
        return self._in_memory == 0 or self._in_memory + size <= self._limit

    # -- guests reserve room, read, and put --

    def reserve_now(self, size: int) -> bool:
        """Take ``size`` bytes of room if they are there at once; put() or give_up() follows."""
        if not self.closed:
            if not self.has_room(size):
                return False
            self._in_memory += size
        return True

    async def reserve(self, size: int) -> None:
        """Take ``size`` bytes of room; waits, in turn, while they are not there. When cancelled, nothing was taken.

        The room comes before the data is read: else as much would be in memory as guests have requests in flight.
        """
        if self.reserve_now(size):
            return
        mine = _Waiting(size, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        try:
            await mine.turn
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            self._free(0 if mine.turn.cancelled() else size)
            raise

    def put(self, drive_id: int, first: int, content: Buffer) -> None:
        """Take clusters for which room is reserved; a closed queue drops them."""
        if not self.closed:
            self._queue.append(Saved(drive_id, first, content))
            self._came.set()

    def give_up(self, size: int) -> None:
        """Give reserved room back unused."""
        if not self.closed:
            self._free(size)

    def _free(self, size: int) -> None:
        """Give memory back, and on to those who wait, first come first served: else large entries would starve."""
        self._in_memory -= size
        while self._waiting and (self.closed or self._fits(self._waiting[0].size)):
            first = self._waiting.popleft()
            if not first.turn.done():
                self._in_memory += first.size
                first.turn.set_result(None)
        self._went.set()

    # -- the archive takes --

    async def take(self) -> list[Saved]:
        """The oldest entries, about a batch; waits for some, and gives none only when the queue is closed.

        They are in hand until release().
        """
        while not self._queue and not self._moved and not self.closed:
            self._came.clear()
            await self._came.wait()
        batch: list[Saved] = []
        size = 0
        while self._queue and size < BATCH:
            batch.append(self._queue.popleft())
            size += len(batch[-1].content)
        self._in_hand += len(batch)
        return batch if batch or self.closed else await self._load()

    async def _load(self) -> list[Saved]:
        moved = self._moved.popleft()
        self._in_hand += len(moved.entries)
        # What comes back from the file counts as memory again, beyond the limit if need be: it is one batch at most.
        self._in_memory += moved.size
        assert self._overflow is not None
        content = memoryview(await self._overflow.load(moved.place, moved.size))
        batch, at = [], 0
        for drive_id, first, size in moved.entries:
            batch.append(Saved(drive_id, first, content[at : at + size]))
            at += size
        return batch

    def release(self, batch: Sequence[Saved]) -> None:
        """The entries have reached the archive: their memory is free."""
        self._in_hand -= len(batch)
        self._free(sum(len(saved.content) for saved in batch))

    async def wait_until_low(self) -> None:
        """Return at a moment when at most half of the memory is taken, or the queue is closed.

        Whatever else goes to the archive should wait for it: guests may soon wait for the room.
        """
        while self._in_memory > self._limit // 2 and not self.closed:
            await self._next_went()

    async def wait_until_empty(self) -> None:
        """Return at a moment when all that was put has reached the archive, or the queue is closed."""
        while not self.is_empty and not self.closed:
            await self._next_went()

    async def _next_went(self) -> None:
        """Return when something has left the memory; every waiter is woken, and has to look for itself."""
        self._went.clear()
        await self._went.wait()

    # -- the file takes what does not fit --

    async def move_to_file(self) -> None:
        """Keep the memory at most half full by moving what came last to the file; runs until cancelled."""
        if self._overflow is None:
            return
        while not self.closed:
            if self._in_memory <= self._limit // 2 or not self._queue:
                self._came.clear()
                await self._came.wait()
            elif not await self._move_batch(self._overflow):
                await self._next_went()

    async def _move_batch(self, overflow: Overflow) -> bool:
        """Move a batch; False, and nothing moved, if the file has no room."""
        batch: deque[Saved] = deque()
        size = 0
        while self._queue and size < BATCH:
            batch.appendleft(self._queue.pop())
            size += len(batch[0].content)
        self._in_hand += len(batch)
        place = None
        try:
            place = await overflow.store([saved.content for saved in batch])
        finally:
            self._in_hand -= len(batch)
            if place is None:
                self._queue.extend(batch)
            else:
                self._moved.append(_Moved(place, [(one.drive_id, one.first, len(one.content)) for one in batch]))
            # The archive may have come meanwhile, and found nothing.
            self._came.set()
        if place is not None:
            self._free(size)
        return place is not None

    def close(self) -> None:
        """Drop everything; nobody waits any longer."""
        self.closed = True
        self._queue.clear()
        self._moved.clear()
        self._came.set()
        self._free(0)
