"""The server's side of NBD's transmission phase: received bytes to requests, without sockets.

This is the hot path of an export, and shaped by it: one buffer takes what the socket gives, one call turns it into
many requests, and a request is a plain tuple. The data of a short write stays where it was received; a long write
gets a buffer of its own, into which the socket is read directly. Specified in ``doc/proto.md`` of the nbd repository.
"""

from __future__ import annotations

from typing import TypeAlias

from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError

Payload: TypeAlias = memoryview | bytearray
Request: TypeAlias = tuple[int, int, int, int, int, Payload, int]
"""command, command flags, cookie, offset and length in bytes, a write's data, error.

With an error other than 0 (an NBD errno) the request is to be answered by that, and not to be done. Data in a
memoryview lies in the reader's buffer and is gone with the next call of it; a bytearray belongs to whoever gets it.
A read of more than LONG bytes is called LONG_READ. A write of more comes as some WRITE_PART and one WRITE_END, in order
and with nothing between them; the flags and the cookie of all are the request's, and it is answered once.
"""

BUFFER_SIZE = 256 * 1024
"""Bytes of the buffer of one connection: 60 writes of 4 KiB."""
SHORT_WRITE = 64 * 1024
"""Bytes of the longest write whose data may stay in the buffer."""
LONG = 1024 * 1024
"""Bytes of the longest read or write that is one piece. A longer one goes piece by piece, so that a client that sends
slowly, or takes no answers, keeps one piece of memory and not 32 MiB."""
LONG_READ, WRITE_PART, WRITE_END = 0x10000 | wire.CMD_READ, 0x10000 | wire.CMD_WRITE, 0x20000 | wire.CMD_WRITE
"""Commands of ours, which no client can send: theirs have 16 bits, which are those of the request here."""
SPARE_BYTES = 16 * 1024 * 1024
"""What PayloadBuffers keeps: 16 writes of 1 MiB."""

_ALLOWED_FLAGS = {
    wire.CMD_READ: wire.CMD_FLAG_FUA | wire.CMD_FLAG_DF,
    wire.CMD_WRITE: wire.CMD_FLAG_FUA,
    wire.CMD_DISC: 0xFFFF,
    wire.CMD_FLUSH: wire.CMD_FLAG_FUA,
    wire.CMD_TRIM: wire.CMD_FLAG_FUA,
    wire.CMD_CACHE: wire.CMD_FLAG_FUA,
    wire.CMD_WRITE_ZEROES: wire.CMD_FLAG_FUA | wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO,
    wire.CMD_BLOCK_STATUS: wire.CMD_FLAG_FUA | wire.CMD_FLAG_REQ_ONE,
}
_CHANGES = frozenset({wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES})
_WRITES = frozenset({wire.CMD_WRITE, wire.CMD_WRITE_ZEROES})
_COSTLY = frozenset({wire.CMD_BLOCK_STATUS, wire.CMD_CACHE})
"""They move nothing, but take about as much memory as a read of LONG bytes."""
_NO_PAYLOAD = memoryview(b"")
_MAGIC_BYTES = wire.LENGTH.pack(wire.REQUEST_MAGIC)

# Local names, which a loop finds faster than a module's attributes.
MAGIC, READ, WRITE, SHORT, HEADER_SIZE = wire.REQUEST_MAGIC, wire.CMD_READ, wire.CMD_WRITE, SHORT_WRITE, 28


class RequestRules:
    """Which requests an export answers, and which error the others get. Fixed after construction."""

    def __init__(self, size: int, flags: int, *, block_status: bool = False) -> None:
        """``size`` in bytes; ``flags``: the transmission flags as sent; ``block_status``: a context was chosen."""
        self._size = size
        self._read_only = bool(flags & wire.FLAG_READ_ONLY)
        self.plain_limits = (size, -1 if self._read_only else size)
        """Where a plain read (0) or write (1) has to end, in bytes."""
        self._fragments = bool(flags & wire.FLAG_SEND_DF)
        self._block_status = block_status

    def error(self, command: int, flags: int, offset: int, length: int) -> int:
        """0, or the NBD errno that the specification names for this request."""
        if command not in _ALLOWED_FLAGS or flags & ~_ALLOWED_FLAGS[command]:
            return wire.NBD_EINVAL
        if command == wire.CMD_DISC:
            return 0
        if command == wire.CMD_FLUSH:
            return wire.NBD_EINVAL if offset or length else 0
        if self._read_only and command in _CHANGES:
            return wire.NBD_EPERM
        if command in (wire.CMD_READ, wire.CMD_WRITE) and length > wire.MAX_PAYLOAD:
            return wire.NBD_EINVAL
        if flags & wire.CMD_FLAG_DF and not self._fragments:
            return wire.NBD_EINVAL
        if command == wire.CMD_BLOCK_STATUS and not (self._block_status and length):
            return wire.NBD_EINVAL
        if offset + length > self._size:
            return wire.NBD_ENOSPC if command in _WRITES else wire.NBD_EINVAL
        return 0


class PayloadBuffers:
    """Buffers for the data of long writes, which are used again and again.

    A new buffer costs page faults or zeroing: with old ones, sequential writes of 1 MiB went from 1.3 to 2.0 GB/s.
    One object serves all connections of an event loop. Changing: the buffers that are not in use.
    """

    def __init__(self, most_bytes: int = SPARE_BYTES) -> None:
        """``most_bytes``: of buffers kept while they are not in use."""
        self._most_bytes = most_bytes
        self._spare: dict[int, list[bytearray]] = {}
        self._bytes = 0

    def take(self, length: int) -> bytearray:
        """A buffer of ``length`` bytes, with anything in it: it must be filled before it is read."""
        if spare := self._spare.get(length):
            self._bytes -= length
            return spare.pop()
        return bytearray(length)

    def give_back(self, buffer: bytearray) -> None:
        """Nobody uses this buffer any more."""
        if self._bytes + len(buffer) > self._most_bytes:
            # Full of other lengths, perhaps: begin anew.
            self._spare.clear()
            self._bytes = 0
        if len(buffer) <= self._most_bytes:
            self._spare.setdefault(len(buffer), []).append(buffer)
            self._bytes += len(buffer)

    def clear(self) -> None:
        """Nobody needs buffers for now."""
        self._spare.clear()
        self._bytes = 0


class RequestReader:
    """The requests of one connection.

    Receive into buffer(), say with received() how much it was, then take requests() until ``starved``.

    Fixed: the rules and the buffers. Changing, by those three methods only: how far the buffer is filled and read,
    the request whose data is still under way, and what is left of a long write.
    """

    def __init__(self, rules: RequestRules, payloads: PayloadBuffers, received: bytes = b"") -> None:
        """``received``: at most BUFFER_SIZE bytes that came along with the handshake."""
        self._rules = rules
        self._payloads = payloads
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._start, self._end = 0, len(received)
        self._view[: self._end] = received
        self._consumed = 0
        self._unfinished: Request | None = None
        self._payload_view = _NO_PAYLOAD
        self._to_skip = 0
        self._long: Request | None = None
        self.receiving = 0
        """Bytes of the buffer of its own into which a write's data is received just now."""
        self.whole = False
        """That buffer is full: requests() takes it, however little it may take."""
        self.starved = not received
        """No further request without receiving more."""
        self.closed = False
        """The client has said that it goes away (DISC): no further request."""

    def buffer(self) -> memoryview:
        """Where to receive into next; never empty while ``starved``."""
        if self._payload_view:
            return self._payload_view
        if self._start == self._end:
            self._consumed += self._start
            self._start = self._end = 0
        elif self._start > BUFFER_SIZE // 2:
            self._move_to_front()
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """So many bytes have been put into buffer()."""
        self.starved = False
        if self._payload_view:
            self._payload_view = self._payload_view[count:]
            self.whole = not self._payload_view
            # Who may take no request now must go on receiving this one all the same.
            self.starved = not self.whole
            self._consumed += count
        else:
            self._end += count

    def requests(self, most: int, most_bytes: int) -> list[Request]:
        """Take at most ``most`` requests that are complete, and stop once they move ``most_bytes`` bytes.

        One whose data had been under way is taken in any case; it is one of LONG bytes at most.

        Raises FormatError when the client sends something else than a request, after all requests before it were
        taken: the connection is to be closed.
        """
        found: list[Request] = []
        self.starved = not self._finish(found)
        while not self._stopped() and len(found) < most and most_bytes > 0:
            if self._long is not None:
                most_bytes -= self._next_part(found, self._long)
                continue
            most_bytes -= self._plain_requests(found, most, most_bytes)
            if self._stopped() or len(found) >= most or most_bytes <= 0:
                break
            if not self._buffer.startswith(_MAGIC_BYTES, self._start):
                if found:
                    break
                raise FormatError("the client sends no request", self._consumed + self._start)
            most_bytes -= self._other_request(found)
        return found

    def _stopped(self) -> bool:
        return self.starved or self.closed

    def _plain_requests(self, found: list[Request], most: int, most_bytes: int) -> int:
        """Take short reads and writes without flags, up to the first other request; return the bytes they move."""
        buffer, view, position, end = self._buffer, self._view, self._start, self._end
        unpack, limits, moved = wire.REQUEST.unpack_from, self._rules.plain_limits, 0
        while len(found) < most and moved < most_bytes:
            behind = position + HEADER_SIZE
            if behind > end:
                self.starved = True
                break
            magic, flags, command, cookie, offset, length = unpack(buffer, position)
            if magic != MAGIC or flags or command > WRITE or length > SHORT or offset + length > limits[command]:
                break
            if command == WRITE:
                data, behind = behind, behind + length
                if behind > end:
                    self.starved = True
                    break
                found.append((WRITE, 0, cookie, offset, length, view[data:behind], 0))
            else:
                found.append((READ, 0, cookie, offset, length, _NO_PAYLOAD, 0))
            position = behind
            moved += length
        self._start = position
        return moved

    def _other_request(self, found: list[Request]) -> int:
        """Take one request of any kind, if it is whole; return the bytes it moves."""
        header: tuple[int, int, int, int, int, int] = wire.REQUEST.unpack_from(self._buffer, self._start)
        _, flags, command, cookie, offset, length = header
        self._start += HEADER_SIZE
        error = self._rules.error(command, flags, offset, length)
        request = (command, flags, cookie, offset, length, _NO_PAYLOAD, error)
        if command == WRITE:
            if length > LONG and not error:
                return self._next_part(found, request)
            return self._receive(found, request)
        self.closed = command == wire.CMD_DISC
        if command == READ and length > LONG and not error:
            request = (LONG_READ, *request[1:])
        found.append(request)
        return length if command == READ else LONG if command in _COSTLY else 0

    def _next_part(self, found: list[Request], rest: Request) -> int:
        """Take a part of a long write, if it is whole; ``rest``: what has not begun yet. Returns the part's bytes."""
        command, flags, cookie, offset, length, payload, error = rest
        part = min(length, LONG)
        command = WRITE_PART if part < length else WRITE_END
        self._long = (WRITE, flags, cookie, offset + part, length - part, payload, error) if part < length else None
        return self._receive(found, (command, flags, cookie, offset, part, payload, error))

    def _receive(self, found: list[Request], request: Request) -> int:
        """Begin to receive a write's data, and take it if it is all there; return its bytes."""
        length, error = request[4], request[6]
        payload: Payload = _NO_PAYLOAD if error else self._receive_payload(length)
        self._to_skip = length if error else 0
        self._unfinished = (*request[:5], payload, error)
        self.starved = not self._finish(found)
        return length

    def _receive_payload(self, length: int) -> bytearray:
        """A buffer for a write's data, with what there is of it; the rest is received right into it."""
        payload = self._payloads.take(length)
        self.receiving = length
        there = min(length, self._end - self._start)
        payload[:there] = self._view[self._start : self._start + there]
        self._start += there
        self._payload_view = memoryview(payload)[there:]
        return payload

    def _finish(self, found: list[Request]) -> bool:
        """Take the request whose data was under way; False when it still is."""
        if self._to_skip:
            skipped = min(self._to_skip, self._end - self._start)
            self._start += skipped
            self._to_skip -= skipped
        if self._to_skip or self._payload_view:
            return False
        if self._unfinished is not None:
            found.append(self._unfinished)
            self._unfinished = None
            self._payload_view = _NO_PAYLOAD
            self.receiving, self.whole = 0, False
        return True

    def _move_to_front(self) -> None:
        left = self._end - self._start
        self._view[:left] = self._view[self._start : self._end]
        self._consumed += self._start
        self._start, self._end = 0, left
