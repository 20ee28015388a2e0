"""A disk that an NBD server offers: one or several connections, many requests in flight."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeAlias

from pybackup.core.device import BlockStatus, Buffer
from pybackup.core.errors import PybackupError, SourceError
from pybackup.core.inflight import InflightRanges
from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.core.system.unfilled import unfilled
from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError

from .negotiation import Prepare, Refused, connect, disconnect
from .session import Batch, ConnectionLost, NbdSession

Failure: TypeAlias = Callable[[str], PybackupError]
"""Makes the error of a sentence; mostly a class, SourceError or TargetError."""
CONNECTIONS = 4
"""Connections where the server allows several."""
REQUEST_SIZE = 512 << 10
"""Bytes in a request: small enough to spread over connections, large enough to cost little each."""
SMALLEST_MOST = 512
"""Bytes: the specification does not let a server ask for smaller requests."""
STATUS_STEP = 1 << 31
"""Bytes asked for in one question for the block status."""
ZEROES_STEP = 1 << 30
LARGEST = (1 << 63) - 1
"""Bytes of a disk: offsets are signed everywhere."""
CONNECT_SECONDS = 30.0
"""How long a server may take for the handshake."""
MORE_SECONDS = 5.0
"""How long each further connection may take; where it takes longer, there are fewer."""


class NbdDevice:
    """An export; implements BlockDevice. Made by connect().

    Fixed: the sessions, what was agreed on, and what makes the error for a connection that is lost (SourceError,
    TargetError): such an error is no OSError, for nothing more can be read or written. Changing: whose turn it is.
    """

    def __init__(
        self,
        sessions: Sequence[NbdSession],
        name: str,
        *,
        writable: bool,
        failure: Failure,
        data_at_once: int | None = None,
    ) -> None:
        self._sessions, self._name, self._failure = sessions, name, failure
        self._agreed = sessions[0].agreed
        self._writable = writable
        # In one piece: what cannot be read is answered then, where QEMU's server leaves else.
        self._read_flags = wire.CMD_FLAG_DF if self._agreed.flags & wire.FLAG_SEND_DF else 0
        self._read_size = min(REQUEST_SIZE, self._agreed.blocks.most, data_at_once or REQUEST_SIZE)
        # No extent is shorter than a sector.
        self._status_size = data_at_once // wire.DESCRIPTOR.size * SMALLEST_MOST if data_at_once else LARGEST
        self._last_used = 0
        self._changing = InflightRanges()

    @classmethod
    async def connect(
        cls,
        address: NbdAddress,
        *,
        writable: bool = False,
        connections: int = CONNECTIONS,
        name: str | None = None,
        failure: Failure = SourceError,
        prepare: Prepare | None = None,
        data_at_once: int | None = None,
    ) -> NbdDevice:
        """Connect to an export; raises ``failure`` with the reason. ``prepare`` gets each connection's socket.

        ``data_at_once``: over each connection one thing is asked after the other, with a reply of at most so many bytes
        beside its headers, and in one piece; None: there is no limit. Not for writing.
        """
        name = name or str(address)
        sessions: list[NbdSession] = []
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                sessions.append(await _open(address, prepare))
            _check(sessions[0], name, writable, failure)
            if sessions[0].agreed.flags & wire.FLAG_CAN_MULTI_CONN:
                await _open_more(address, sessions, connections, prepare)
        except BaseException as error:
            for session in sessions:
                # Whoever prepares a socket also sees to its end.
                await (session.close() if prepare is None else session.abort())
            if isinstance(error, OSError | FormatError | Refused):
                raise _explained(error, name, failure) from error
            raise
        if data_at_once is not None:
            for session in sessions:
                session.ask_one_by_one()
        return cls(sessions, name, writable=writable, failure=failure, data_at_once=data_at_once)

    @property
    def size(self) -> int:
        """The size in bytes when we connected."""
        return self._agreed.size

    @property
    def name(self) -> str:
        """What the user called it."""
        return self._name

    @property
    def read_only(self) -> bool:
        """True unless opened with ``writable``."""
        return not self._writable

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._sessions)

    @property
    def tells_status(self) -> bool:
        """Whether the server can tell where zeros are."""
        return self._agreed.context is not None

    # -- reading --

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read, in pieces over all connections (OSError)."""
        low, high = self._outwards(offset, offset + length)
        content = unfilled(high - low)  # that a reply covers all of it is checked
        view = memoryview(content)
        try:
            await self._read(low, view)
        except OSError as error:
            if error.errno != errno.EOVERFLOW or not self._read_flags:
                raise
            self._read_flags = 0  # too much for one piece
            await self._read(low, view)
        return content if high - low == length else view[offset - low : offset - low + length]

    async def _read(self, low: int, view: memoryview) -> None:
        batch = Batch()
        try:
            for at in range(0, len(view), self._read_size):
                part = view[at : at + self._read_size]
                await self._next().read(low + at, part, batch, self._read_flags)
            await batch.wait()
        except ConnectionLost as lost:
            raise self._lost(lost) from None

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """Ask the server, where it can tell; else all is data (OSError)."""
        if self._agreed.context is None:
            return [BlockStatus(offset, length, zero=False, hole=False)]
        low, high = self._outwards(offset, min(offset + length, offset + STATUS_STEP))
        try:
            extents = await self._ask_status(low, high)
        except ConnectionLost as lost:
            raise self._lost(lost) from None
        found = _trimmed(low, extents, offset, min(high, offset + length))
        if not found:
            raise OSError(errno.EIO, "the NBD server tells no block status", self._name)
        return found

    async def _ask_status(self, low: int, high: int) -> Sequence[tuple[int, int]]:
        """A long range is told as one extent where its extents might be more than one reply may hold."""
        if high - low <= self._status_size:
            return await self._ask_extents(low, high)
        first = await self._ask_extents(low, high, wire.CMD_FLAG_REQ_ONE)
        if first and first[0][0] >= self._status_size:
            return first
        return await self._ask_extents(low, low + self._status_size)

    async def _ask_extents(self, low: int, high: int, flags: int = 0) -> Sequence[tuple[int, int]]:
        batch = Batch()
        request = await self._next().ask(wire.CMD_BLOCK_STATUS, low, high - low, batch, flags=flags)
        await batch.wait()
        return request.extents

    # -- writing --

    async def pwrite(self, offset: int, data: Buffer) -> None:
        """Write, in pieces over all connections (OSError)."""
        self._check_writable()
        view = memoryview(data).cast("B")
        low, high = self._outwards(offset, offset + len(view))
        async with self._alone(low, high):
            if high - low != len(view):
                content = bytearray(await self.pread(low, high - low))
                content[offset - low : offset - low + len(view)] = view
                offset, view = low, memoryview(content)
            await self._write(offset, view)

    async def _write(self, offset: int, view: memoryview) -> None:
        batch = Batch()
        try:
            step = min(REQUEST_SIZE, self._agreed.blocks.most)
            for at in range(0, len(view), step):
                part = view[at : at + step]
                await self._next().ask(wire.CMD_WRITE, offset + at, len(part), batch, data=part)
            await batch.wait()
        except ConnectionLost as lost:
            raise self._lost(lost) from None

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        """Zero by the server's own command where it has one; else write zeros (OSError)."""
        self._check_writable()
        knows = self._agreed.flags & wire.FLAG_SEND_WRITE_ZEROES
        if fast_only and not (knows and self._agreed.flags & wire.FLAG_SEND_FAST_ZERO):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), self._name)
        if not knows:
            await self._write_zero_bytes(offset, length)
            return
        flags = (0 if may_punch else wire.CMD_FLAG_NO_HOLE) | (wire.CMD_FLAG_FAST_ZERO if fast_only else 0)
        low, high = self._inwards(offset, offset + length)
        if fast_only and (low, high) != (offset, offset + length):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), self._name)
        if low >= high:
            await self._write_zero_bytes(offset, length)
            return
        await self._command(wire.CMD_WRITE_ZEROES, low, high - low, flags)
        await self._write_zero_bytes(offset, low - offset)
        await self._write_zero_bytes(high, offset + length - high)

    async def _write_zero_bytes(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, 1 << 20):
            await self.pwrite(at, bytes(min(1 << 20, offset + length - at)))

    async def discard(self, offset: int, length: int) -> None:
        """Trim, where the server can (OSError)."""
        self._check_writable()
        low, high = self._inwards(offset, offset + length)
        if low < high and self._agreed.flags & wire.FLAG_SEND_TRIM:
            await self._command(wire.CMD_TRIM, low, high - low)

    async def flush(self) -> None:
        """Flush; several connections are only used where one flush is for all (OSError)."""
        if self._writable and self._agreed.flags & wire.FLAG_SEND_FLUSH:
            await self._ask_in_steps(wire.CMD_FLUSH, 0, 0)

    async def _command(self, command: int, offset: int, length: int, flags: int = 0) -> None:
        async with self._alone(offset, offset + length):
            await self._ask_in_steps(command, offset, length, flags)

    async def _ask_in_steps(self, command: int, offset: int, length: int, flags: int = 0) -> None:
        batch = Batch()
        try:
            for at in range(0, length or 1, ZEROES_STEP):
                part = min(ZEROES_STEP, length - at)
                await self._next().ask(command, offset + at, part, batch, flags=flags)
            await batch.wait()
        except ConnectionLost as lost:
            raise self._lost(lost) from None

    # -- the short ways, and the end --

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Never: the server has to be asked."""
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Never."""
        return False

    async def close(self) -> None:
        """Take leave of the server."""
        for session in self._sessions:
            await session.close()

    async def abort(self) -> None:
        """Go without a word."""
        for session in self._sessions:
            await session.abort()

    # -- --

    @contextlib.asynccontextmanager
    async def _alone(self, start: int, end: int) -> AsyncIterator[None]:
        """One change of a block after the other, where the server's blocks are read to be changed in part."""
        if self._agreed.blocks.smallest == 1:
            yield
            return
        await self._changing.wait_until_free(start, end)
        changing = self._changing.begin(start, end)
        try:
            yield
        finally:
            self._changing.finish(changing)

    def _next(self) -> NbdSession:
        self._last_used = (self._last_used + 1) % len(self._sessions)
        return self._sessions[self._last_used]

    def _check_writable(self) -> None:
        if not self._writable:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), self._name)

    def _lost(self, lost: ConnectionLost) -> PybackupError:
        return self._failure(f"{self._name}: {lost}")

    def _outwards(self, start: int, end: int) -> tuple[int, int]:
        block = self._agreed.blocks.smallest
        return start // block * block, min(self.size, -(-end // block) * block)

    def _inwards(self, start: int, end: int) -> tuple[int, int]:
        block = self._agreed.blocks.smallest
        return -(-start // block) * block, end // block * block


async def _open(address: NbdAddress, prepare: Prepare | None) -> NbdSession:
    sock, agreed = await connect(address, prepare)
    return await NbdSession.over(sock, agreed)


async def _open_more(address: NbdAddress, sessions: list[NbdSession], wanted: int, prepare: Prepare | None) -> None:
    """Further connections, as many as can be had: the server may have its own idea of how many it serves."""
    first = sessions[0].agreed
    while len(sessions) < wanted:
        try:
            async with asyncio.timeout(MORE_SECONDS):
                sock, agreed = await connect(address, prepare)
        except (OSError, FormatError, Refused):
            return
        if agreed != first:
            if prepare is None:
                await disconnect(sock)
            sock.close()
            return
        sessions.append(await NbdSession.over(sock, agreed))


def _check(session: NbdSession, name: str, writable: bool, failure: Failure) -> None:
    agreed = session.agreed
    if writable and agreed.flags & wire.FLAG_READ_ONLY:
        raise failure(f"cannot write to {name}: it is read-only, and can only be read")
    if not agreed.size and not writable:
        raise failure(f"{name} is empty: it has 0 bytes")
    if agreed.size > LARGEST:
        raise failure(f"cannot use {name}: it tells a size of {agreed.size} bytes, which no disk has")
    if agreed.blocks.most < min(SMALLEST_MOST, agreed.size):
        raise failure(f"cannot use {name}: it answers requests of {agreed.blocks.most} bytes at most")
    if agreed.size % agreed.blocks.smallest:
        raise failure(f"cannot use {name}: its size is no multiple of its block size")


def _explained(error: OSError | FormatError | Refused, name: str, failure: Failure) -> PybackupError:
    if isinstance(error, TimeoutError) and not error.errno:
        return failure(f"cannot use {name}: it does not answer")
    if isinstance(error, OSError):
        # asyncio puts its own words into strerror, and a name that cannot be found has numbers of its own.
        known = error.errno is not None and error.errno in errno.errorcode and not isinstance(error, socket.gaierror)
        reason = os.strerror(error.errno or 0) if known else error.strerror
        return failure(f"cannot use {name}: {reason or error}")
    return failure(f"cannot use {name}: {error.what if isinstance(error, FormatError) else error}")


def _trimmed(at: int, extents: Sequence[tuple[int, int]], start: int, end: int) -> list[BlockStatus]:
    """The extents of a reply that begins at ``at``, cut to a range, neighbours joined."""
    found: list[BlockStatus] = []
    for length, state in extents:
        low, high = max(at, start), min(at + length, end)
        at += length
        if low >= high:
            continue
        zero, hole = bool(state & wire.STATE_ZERO), bool(state & wire.STATE_HOLE)
        if found and (found[-1].zero, found[-1].hole) == (zero, hole):
            low = found.pop().offset
        found.append(BlockStatus(low, high - low, zero=zero, hole=hole))
    return found
