"""Ranges in flight: who works on what, and how to wait for it.

The request list of QEMU's ``block/reqlist.c``, for one event loop. Units are the caller's (clusters or bytes).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator


class Range:
    """A half-open range [start, end) in flight. Fixed: all but who waits for its end."""

    __slots__ = ("_waiters", "end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self._waiters: list[asyncio.Future[None]] = []

    def overlaps(self, start: int, end: int) -> bool:
        """Whether a part of [start, end) is in this range."""
        return self.start < end and start < self.end

    def wake(self) -> None:
        """The range has ended: let everyone who waits look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def ended(self) -> None:
        """Return when the range is no longer in flight."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class InflightRanges:
    """The ranges in flight of one device. Owned by the event loop; a few dozen at most, so a plain list."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def begin(self, start: int, end: int) -> Range:
        """Register a range; it may overlap others only if the caller allows that."""
        new = Range(start, end)
        self._ranges.append(new)
        return new

    def finish(self, a_range: Range) -> None:
        """The range is no longer in flight."""
        self._ranges.remove(a_range)
        a_range.wake()

    def first_overlap(self, start: int, end: int) -> Range | None:
        """Some range in flight that overlaps [start, end), or None."""
        for a_range in self._ranges:
            if a_range.overlaps(start, end):
                return a_range
        return None

    async def wait_until_free(self, start: int, end: int) -> None:
        """Return at a moment when nothing in flight overlaps [start, end)."""
        while (found := self.first_overlap(start, end)) is not None:
            await found.ended()

    async def wait_until_empty(self) -> None:
        """Return at a moment when nothing is in flight."""
        while self._ranges:
            await self._ranges[0].ended()
