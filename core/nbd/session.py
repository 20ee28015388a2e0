"""One connection to an NBD server in the transmission phase, with many requests in flight.

Data goes from the socket straight to where it is wanted. Headers come through a small buffer, which also takes the
first bytes of data behind them: so a reply costs two system calls, and many short replies cost one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass, field
from itertools import count

from pybackup.core.device import Buffer
from pybackup.formats import nbd_client_wire as client
from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError

from .negotiation import Agreed

HEADERS = 8192
"""Bytes of the buffer for headers."""
MOST_PIECES = 4096
"""Places of one read that may be filled out of order: what is remembered of a reply has an end."""
_LONGEST_HEADER = wire.CHUNK.size + wire.CHUNK_OFFSET.size
_ERRORS = {
    wire.NBD_EPERM: errno.EPERM,
    wire.NBD_EIO: errno.EIO,
    wire.NBD_ENOMEM: errno.ENOMEM,
    wire.NBD_EINVAL: errno.EINVAL,
    wire.NBD_ENOSPC: errno.ENOSPC,
    wire.NBD_EOVERFLOW: errno.EOVERFLOW,
    wire.NBD_ENOTSUP: errno.EOPNOTSUPP,
    wire.NBD_ESHUTDOWN: errno.ESHUTDOWN,
}


class ConnectionLost(Exception):  # noqa: N818 - becomes an error of the side that the device is on
    """The server has gone, or what it says makes no sense; the text says which."""


class Batch:
    """Requests that are waited for together.

    Changing: how many are under way, and the first failure. All are waited for, since a write that is still under way
    could overtake a later one; a connection that is lost ends the waiting.
    """

    def __init__(self) -> None:
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = 1
        self._error: Exception | None = None

    def add(self) -> None:
        """One request more."""
        self._left += 1

    def end(self, error: Exception | None = None) -> None:
        """One request less."""
        self._left -= 1
        self._error = self._error or error
        if self._done.done() or (self._left and not isinstance(error, ConnectionLost)):
            return
        if self._error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error if isinstance(error, ConnectionLost) else self._error)
            self._done.exception()  # seen, also where nobody waits any more

    async def wait(self) -> None:
        """Return when all have ended well (OSError, ConnectionLost)."""
        self.end()
        await self._done


@dataclass(slots=True)
class Request:
    """A request in flight: offset and length in bytes; ``target`` takes the data of a read.

    Changing: what the chunks of its reply have told so far.
    """

    command: int
    offset: int
    length: int
    batch: Batch
    target: memoryview | None = None
    cookie: int = 0
    covered: list[tuple[int, int]] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    error: OSError | None = None


class NbdSession(asyncio.BufferedProtocol):
    """The protocol of one connection.

    Fixed: what was agreed on. Changing, in the event loop only: the requests in flight by cookie, where in a reply we
    are, and the reason why the connection is of no use any more.
    """

    def __init__(self, agreed: Agreed) -> None:
        self.agreed = agreed
        self._requests: dict[int, Request] = {}
        self._cookies = count(1)
        self._transport: asyncio.Transport | None = None
        self._turn: asyncio.Semaphore | None = None
        self._writable = asyncio.Event()
        self._gone = asyncio.Event()
        self._lost: ConnectionLost | None = None
        self._headers = memoryview(bytearray(HEADERS))
        self._start = self._end = 0
        self._target: memoryview | None = None
        self._payload: tuple[Request, client.Chunk | None, bytearray | None] | None = None

    @classmethod
    async def over(cls, sock: socket.socket, agreed: Agreed) -> NbdSession:
        """The session on a socket that has been negotiated on."""
        _, session = await asyncio.get_running_loop().create_connection(lambda: cls(agreed), sock=sock)
        return session

    # -- requests --

    def ask_one_by_one(self) -> None:
        """From now on a request waits until the one before it has been answered."""
        self._turn = asyncio.Semaphore()

    async def ask(
        self, command: int, offset: int, length: int, batch: Batch, *, flags: int = 0, data: Buffer | None = None
    ) -> Request:
        """Send a request; ``batch`` ends with its reply."""
        return await self._send(Request(command, offset, length, batch), flags, data)

    async def read(self, offset: int, target: memoryview, batch: Batch, flags: int = 0) -> Request:
        """Ask for bytes from ``offset`` on, to be put into ``target``."""
        return await self._send(Request(wire.CMD_READ, offset, len(target), batch, target), flags)

    async def _send(self, request: Request, flags: int = 0, data: Buffer | None = None) -> Request:
        if self._turn is not None:
            await self._turn.acquire()
        try:
            await self._writable.wait()
            if self._lost is not None or self._transport is None:
                raise self._lost or ConnectionLost("the connection is closed")
        except BaseException:
            self._answered()
            raise
        request.cookie = cookie = next(self._cookies)
        self._requests[cookie] = request
        request.batch.add()
        self._transport.write(client.encode_request(request.command, cookie, request.offset, request.length, flags))
        if data is not None:
            self._transport.write(data)
        return request

    def _answered(self) -> None:
        if self._turn is not None:
            self._turn.release()

    async def close(self) -> None:
        """Take leave and close; requests in flight fail."""
        if self._transport is not None and not self._gone.is_set():
            self._transport.write(client.encode_request(wire.CMD_DISC, 0))
            if self._requests:
                self._transport.abort()
            self._transport.close()
            try:
                async with asyncio.timeout(1):
                    await self._gone.wait()
            except TimeoutError:
                await self.abort()

    async def abort(self) -> None:
        """Close without taking leave; requests in flight fail."""
        if self._transport is not None:
            self._transport.abort()
            await self._gone.wait()

    # -- called by the transport --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._writable.set()

    def pause_writing(self) -> None:
        """Enough waits to be sent."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Most of it was sent."""
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._target if self._target is not None else self._headers[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        try:
            if self._target is not None:
                self._fill(nbytes)
            else:
                self._end += nbytes
            self._parse()
        except FormatError as error:
            self._give_up(error.what)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server, or we, closed the connection."""
        reason = f": {exc.strerror}" if isinstance(exc, OSError) and exc.strerror else ""
        self._give_up(f"the NBD server ended the connection{reason}")
        self._gone.set()

    def _give_up(self, reason: str) -> None:
        if self._lost is None:
            self._lost = ConnectionLost(reason)
        self._writable.set()
        self._target = self._payload = None
        self._start = self._end = 0
        requests, self._requests = self._requests, {}
        for request in requests.values():
            self._answered()
            request.batch.end(ConnectionLost(str(self._lost)))
        if self._transport is not None:
            self._transport.abort()

    # -- replies --

    def _fill(self, count: int) -> None:
        assert self._target is not None
        self._target = self._target[count:] if count < len(self._target) else None
        if self._target is None:
            self._payload_ended()

    def _parse(self) -> None:
        while self._lost is None and self._start < self._end:
            if self._target is not None:
                count = min(len(self._target), self._end - self._start)
                self._target[:count] = self._headers[self._start : self._start + count]
                self._start += count
                self._fill(count)
            elif not self._take_header():
                break
        rest = self._end - self._start
        if self._start:
            self._headers[:rest] = bytes(self._headers[self._start : self._end])
        self._start, self._end = 0, rest

    def _take_header(self) -> bool:
        """Decode the header at the start of the buffer; False when it is not complete."""
        have = bytes(self._headers[self._start : min(self._end, self._start + _LONGEST_HEADER)])
        if len(have) < client.REPLY_START_SIZE:
            return False
        if not client.is_chunk(have):
            self._start += client.REPLY_START_SIZE
            self._simple(client.decode_simple_reply(have[: client.REPLY_START_SIZE]))
            return True
        if len(have) < wire.CHUNK.size:
            return False
        chunk = client.decode_chunk(have[: wire.CHUNK.size])
        if chunk.kind != wire.CHUNK_OFFSET_DATA:
            self._start += wire.CHUNK.size
            self._chunk(chunk)
            return True
        if len(have) < _LONGEST_HEADER:
            return False
        self._start += _LONGEST_HEADER
        self._data(chunk, wire.CHUNK_OFFSET.unpack(have[wire.CHUNK.size :])[0])
        return True

    def _of(self, cookie: int) -> Request:
        request = self._requests.get(cookie)
        if request is None:
            raise FormatError("the NBD server answers a request that was not made")
        return request

    def _simple(self, reply: client.SimpleReply) -> None:
        request = self._of(reply.cookie)
        if self.agreed.structured and request.command in (wire.CMD_READ, wire.CMD_BLOCK_STATUS):
            raise FormatError("the NBD server sends a simple reply where a structured one was agreed on")
        if reply.error:
            request.error = _os_error(reply.error, "")
        elif request.target is not None:
            request.covered.append((request.offset, request.length))
            self._expect(request, None, request.target)
            return
        self._finish(reply.cookie)

    def _data(self, chunk: client.Chunk, offset: int) -> None:
        request = self._of(chunk.cookie)
        length = chunk.length - wire.CHUNK_OFFSET.size
        self._cover(request, offset, length)
        assert request.target is not None
        at = offset - request.offset
        self._expect(request, chunk, request.target[at : at + length])

    def _chunk(self, chunk: client.Chunk) -> None:
        request = self._of(chunk.cookie)
        if chunk.kind == wire.CHUNK_NONE:
            if chunk.length:
                raise FormatError("the NBD server sends an empty chunk that is not empty")
            self._chunk_ended(chunk)
            return
        if not chunk.length:
            raise FormatError("the NBD server sends a chunk without its content")
        payload = bytearray(chunk.length)
        self._expect(request, chunk, memoryview(payload), payload)

    def _expect(
        self, request: Request, chunk: client.Chunk | None, target: memoryview, payload: bytearray | None = None
    ) -> None:
        self._target = target
        self._payload = (request, chunk, payload)

    def _payload_ended(self) -> None:
        assert self._payload is not None
        request, chunk, payload = self._payload
        self._payload = None
        if chunk is None:
            self._finish(request.cookie)
            return
        if payload is not None:
            self._take_payload(request, chunk.kind, bytes(payload))
        self._chunk_ended(chunk)

    def _take_payload(self, request: Request, kind: int, payload: bytes) -> None:
        if kind & wire.CHUNK_ERROR_BIT:
            number, message = client.decode_error(payload)
            request.error = request.error or _os_error(number, message)
        elif kind == wire.CHUNK_OFFSET_HOLE:
            offset, length = client.decode_hole(payload)
            self._cover(request, offset, length)
            assert request.target is not None
            at = offset - request.offset
            request.target[at : at + length] = bytes(length)
        elif kind == wire.CHUNK_BLOCK_STATUS and request.command == wire.CMD_BLOCK_STATUS:
            context, extents = client.decode_block_status(payload)
            if context == self.agreed.context:
                if request.extents:
                    raise FormatError("the NBD server sends a block status twice")
                request.extents = extents
        else:
            raise FormatError(f"the NBD server sends a chunk of an unknown kind ({kind})")

    def _cover(self, request: Request, offset: int, length: int) -> None:
        end = request.offset + request.length
        if request.target is None or length < 1 or offset < request.offset or offset + length > end:
            raise FormatError("the NBD server sends data that was not asked for")
        if request.covered and sum(request.covered[-1]) == offset:
            offset, before = request.covered.pop()
            length += before
        request.covered.append((offset, length))
        if len(request.covered) > MOST_PIECES:
            raise FormatError("the NBD server sends data in too many pieces")

    def _chunk_ended(self, chunk: client.Chunk) -> None:
        if chunk.done:
            self._finish(chunk.cookie)

    def _finish(self, cookie: int) -> None:
        request = self._requests[cookie]
        # What fails here fails for all requests in flight, so this one is still one of them.
        if request.error is None and request.target is not None:
            _check_covered(request)
        if request.error is not None and request.error.errno == errno.ESHUTDOWN:
            raise FormatError("the NBD server is shutting down")
        del self._requests[cookie]
        self._answered()
        request.batch.end(request.error)


def _check_covered(request: Request) -> None:
    """A read must have brought each byte once."""
    at = request.offset
    for offset, length in sorted(request.covered):
        if offset != at:
            raise FormatError("the NBD server sends less, or more, than was asked for")
        at += length
    if at != request.offset + request.length:
        raise FormatError("the NBD server sends less than was asked for")


def _os_error(number: int, message: str) -> OSError:
    code = _ERRORS.get(number, errno.EIO)
    return OSError(code, message or os.strerror(code))
