"""What a device has to do for each NBD request that cannot be answered at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from pybackup.core.device import BlockDevice, BlockStatus, Buffer
from pybackup.formats import nbd_replies
from pybackup.formats import nbd_wire as wire
from pybackup.formats.nbd_replies import Replies

CACHE_PIECE = 1 << 20
"""Bytes read at once for CACHE, which may name 4 GiB."""
STATUS_RANGE = 1 << 30
STATUS_EXTENTS = 4096
"""Bytes and extents that one BLOCK_STATUS describes at most: they bound its memory, and clients ask again."""


@dataclass(slots=True)
class SlowRequest:
    """A request with its own copy of a write's data; offset and length in bytes. Nothing changes."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: Buffer


class SlowRequests:
    """Does requests for one connection. Fixed: everything."""

    def __init__(self, device: BlockDevice, replies: Replies, is_wanted: Callable[[], bool]) -> None:
        """``is_wanted``: whether anybody still waits for answers."""
        self._device = device
        self._replies = replies
        self._is_wanted = is_wanted
        self._actions: dict[int, Callable[[SlowRequest], Awaitable[list[Buffer]]]] = {
            wire.CMD_READ: self._read,
            wire.CMD_WRITE: self._write,
            wire.CMD_FLUSH: self._flush,
            wire.CMD_TRIM: self._trim,
            wire.CMD_CACHE: self._cache,
            wire.CMD_WRITE_ZEROES: self._write_zeroes,
            wire.CMD_BLOCK_STATUS: self._block_status,
        }

    async def reply(self, request: SlowRequest) -> list[Buffer]:
        """Do it and return what to send. Raises what the device raises."""
        return await self._actions[request.command](request)

    async def _read(self, request: SlowRequest) -> list[Buffer]:
        data = await self._device.pread(request.offset, request.length)
        check_length(data, request.length)
        return [self._replies.read_header(request.cookie, request.offset, request.length), data]

    async def _write(self, request: SlowRequest) -> list[Buffer]:
        await self._device.pwrite(request.offset, request.payload)
        return await self.changed(request)

    async def _trim(self, request: SlowRequest) -> list[Buffer]:
        await self._device.discard(request.offset, request.length)
        return await self.changed(request)

    async def _write_zeroes(self, request: SlowRequest) -> list[Buffer]:
        await self._device.write_zeroes(
            request.offset,
            request.length,
            may_punch=not request.flags & wire.CMD_FLAG_NO_HOLE,
            fast_only=bool(request.flags & wire.CMD_FLAG_FAST_ZERO),
        )
        return await self.changed(request)

    async def changed(self, request: SlowRequest) -> list[Buffer]:
        """The reply to a change: with FUA only when it is durable."""
        if request.flags & wire.CMD_FLAG_FUA:
            await self._device.flush()
        return [nbd_replies.done(request.cookie)]

    async def _flush(self, request: SlowRequest) -> list[Buffer]:
        await self._device.flush()
        return [nbd_replies.done(request.cookie)]

    async def _cache(self, request: SlowRequest) -> list[Buffer]:
        end = request.offset + request.length
        for offset in range(request.offset, end, CACHE_PIECE):
            if not self._is_wanted():
                break
            await self._device.pread(offset, min(CACHE_PIECE, end - offset))
        return [nbd_replies.done(request.cookie)]

    async def _block_status(self, request: SlowRequest) -> list[Buffer]:
        extents = await self._device.extents(request.offset, min(request.length, STATUS_RANGE))
        one = bool(request.flags & wire.CMD_FLAG_REQ_ONE)
        return [nbd_replies.block_status(request.cookie, _descriptors(islice(extents, STATUS_EXTENTS)), one)]


def check_length(data: Buffer, length: int) -> None:
    """A device that reads too little or too much must not spoil the stream of replies. Raises ValueError."""
    if len(data) != length:
        raise ValueError(f"the device read {len(data)} bytes instead of {length}")


def _descriptors(extents: Iterable[BlockStatus]) -> Iterable[tuple[int, int]]:
    for extent in extents:
        yield extent.length, extent.hole * wire.STATE_HOLE | extent.zero * wire.STATE_ZERO
