"""Reads and writes that are too long to be in memory whole: they go piece by piece.

A read in structured style is answered in chunks. In the simple style, or where the client wants one chunk (DF), a reply
that has begun can neither fail nor be interrupted by another one: so all of it is read before, to see whether that is
possible, and then once more, when nothing else is in flight. A client that asks for that has all else of its waiting.
"""

from __future__ import annotations

from collections.abc import Iterator

from pybackup.core.device import BlockDevice
from pybackup.formats.nbd_transmission import LONG

from .requests import SlowRequest


class GoneError(Exception):
    """The client has gone, so there is nothing to do any more."""


class LongWrite:
    """A write whose parts are received, and written, one by one.

    Changing: the parts under way, whether the last has come, and the first failure, after which the rest is dropped.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._under_way = 0
        self._has_end = False

    def begin(self, *, last: bool) -> None:
        """A part has come; ``last``: it is the end."""
        self._under_way += 1
        self._has_end |= last

    def end(self) -> bool:
        """A part is done; True when that was all."""
        self._under_way -= 1
        return self._has_end and not self._under_way

    async def write(self, device: BlockDevice, request: SlowRequest) -> None:
        """Write a part, unless it is in vain."""
        if self.failure is not None:
            return
        try:
            await device.pwrite(request.offset, request.payload)
        except Exception as failure:
            self.failure = self.failure or failure


def pieces(request: SlowRequest) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, whether it is the last) of each piece of a request, in bytes."""
    end = request.offset + request.length
    for offset in range(request.offset, end, LONG):
        behind = min(end, offset + LONG)
        yield offset, behind - offset, behind == end
