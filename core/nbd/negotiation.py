"""The client's handshake with an NBD server: connect, agree on replies and metadata, go to the export.

The order of ``doc/proto.md``: greeting, flags, STRUCTURED_REPLY, SET_META_CONTEXT, GO. After GO was acknowledged the
server says nothing before it is asked, so nothing that belongs to the transmission is read here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.formats import nbd_client_wire as client
from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError

_REASONS = {
    wire.REP_ERR_UNSUP: "it does not know the GO option: it is too old",
    wire.REP_ERR_POLICY: "it does not allow it",
    wire.REP_ERR_UNKNOWN: "it has no such export",
    wire.REP_ERROR + 5: "it wants TLS, which is not supported",
    wire.REP_ERROR + 7: "it is shutting down",
}
ADDRESS_SECONDS = 10.0
"""How long one of a host's addresses may take to be connected to."""
QUEUE_SECONDS = 0.05
"""How long until a Unix socket whose queue is full is tried again."""
KEEPALIVE_SECONDS = 60
"""Seconds of silence after which a host is asked whether it is still there, and the same until it counts as gone."""
Prepare: TypeAlias = Callable[[socket.socket], Awaitable[None]]
MOST_REPLIES = 100
"""Replies to one option; a server that sends more never comes to an end."""


class BlockSizes(NamedTuple):
    """What INFO_BLOCK_SIZE says, in bytes: offsets and lengths are multiples of ``smallest``; data at most ``most``."""

    smallest: int = 1
    most: int = wire.MAX_PAYLOAD


@dataclass(slots=True)
class Agreed:
    """What was agreed on: size in bytes, transmission flags, block sizes, the id of the metadata context, if any."""

    size: int = 0
    flags: int = 0
    blocks: BlockSizes = field(default_factory=BlockSizes)
    structured: bool = False
    context: int | None = None


class Refused(Exception):  # noqa: N818 - not an error of ours
    """The server does not give us the export; the text says why."""


async def connect(
    address: NbdAddress, prepare: Prepare | None = None, context: str = wire.BASE_ALLOCATION
) -> tuple[socket.socket, Agreed]:
    """Connect and negotiate (OSError, FormatError, Refused); the socket is non-blocking and the caller's.

    ``prepare`` gets the socket before anything is said. ``context``: the metadata that a block status shall tell.
    """
    sock = await _open_socket(address)
    try:
        if prepare is not None:
            await prepare(sock)
        return sock, await _Negotiation(sock, address.export, context).run()
    except BaseException:
        sock.close()
        raise


async def _open_socket(address: NbdAddress) -> socket.socket:
    if address.socket is not None:
        return await _connected_unix(address.socket)
    failure = OSError("it has no address")
    for family, kind, protocol, _, place in await _resolve(address.host, address.port):
        try:
            # An address that swallows what is sent to it must not keep us from the next.
            async with asyncio.timeout(ADDRESS_SECONDS):
                sock = await _connected(socket.socket(family, kind, protocol), place)
        except OSError as error:
            failure = error
            continue
        _tune(sock)
        return sock
    raise failure


async def _resolve(host: str, port: int) -> list[Any]:
    """getaddrinfo() in a thread that nobody waits for: a name server that is silent must not hold up a Ctrl-C."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def answer(addresses: list[Any], error: OSError | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(addresses)
        else:
            found.set_exception(error)

    def look() -> None:
        addresses: list[Any] = []
        failure = None
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            failure = error
        except ValueError:
            failure = OSError(f"{host!r} is no host name")
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(answer, addresses, failure)

    threading.Thread(target=look, name="pybackup-resolve", daemon=True).start()
    return await found


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A host that has gone without a word is noticed, and the backup fails instead of waiting for ever.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS // 6)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)


async def _connected_unix(path: str) -> socket.socket:
    """Where the server's queue is full, connect() says EAGAIN, and no event tells when there is room again."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                sock.connect(path)
                return sock
            await asyncio.sleep(QUEUE_SECONDS)
    except BaseException:
        sock.close()
        raise


async def _connected(sock: socket.socket, place: str | tuple[object, ...]) -> socket.socket:
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


class _Negotiation:
    """One handshake. Fixed: socket, export, metadata context. Changing: what is agreed on."""

    def __init__(self, sock: socket.socket, export: str, context: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock, self._export, self._context = sock, export, context
        self._agreed = Agreed()

    async def run(self) -> Agreed:
        flags = client.decode_greeting(await self._receive(wire.GREETING.size))
        await self._send(client.encode_client_flags(flags))
        await self._ask_structured()
        if self._agreed.structured:
            await self._ask_context()
        await self._go()
        return self._agreed

    async def _ask_structured(self) -> None:
        await self._send(client.encode_option(wire.OPT_STRUCTURED_REPLY))
        kind, _ = (await self._replies(wire.OPT_STRUCTURED_REPLY))[-1]
        self._agreed.structured = kind == wire.REP_ACK

    async def _ask_context(self) -> None:
        await self._send(client.encode_meta_context(self._export, [self._context]))
        for kind, data in await self._replies(wire.OPT_SET_META_CONTEXT):
            if kind == wire.REP_META_CONTEXT:
                identity, name = client.decode_meta_context(data)
                if name == self._context:
                    self._agreed.context = identity

    async def _go(self) -> None:
        await self._send(client.encode_go(self._export, [wire.INFO_BLOCK_SIZE]))
        replies = await self._replies(wire.OPT_GO)
        kind, data = replies[-1]
        if kind != wire.REP_ACK:
            said = client.decode_message(data)
            raise Refused(_REASONS.get(kind) or said or f"it refuses with error {kind - wire.REP_ERROR}")
        for kind, data in replies[:-1]:
            if kind == wire.REP_INFO:
                self._take_info(data)
        if not self._agreed.flags & wire.FLAG_HAS_FLAGS:
            raise FormatError("the NBD server says nothing of the export")

    def _take_info(self, data: bytes) -> None:
        if export := client.decode_info_export(data):
            self._agreed.size, self._agreed.flags = export
        elif sizes := client.decode_info_block_size(data):
            self._agreed.blocks = BlockSizes(sizes[0], min(sizes[1], wire.MAX_PAYLOAD))

    async def _replies(self, option: int) -> list[tuple[int, bytes]]:
        """(kind, data) of all replies to an option, up to the acknowledgement or refusal that ends them."""
        replies: list[tuple[int, bytes]] = []
        while len(replies) < MOST_REPLIES:
            reply = client.decode_option_reply(await self._receive(wire.OPTION_REPLY.size))
            if reply.option != option:
                raise FormatError("the NBD server answers an option that was not asked")
            replies.append((reply.kind, await self._receive(reply.length)))
            if reply.kind == wire.REP_ACK or reply.kind & wire.REP_ERROR:
                return replies
        raise FormatError("the NBD server sends no end of replies to an option")

    async def _send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def _receive(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = await self._loop.sock_recv(self._sock, min(size, 1 << 16))
            if not part:
                raise ConnectionResetError("it ended the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


async def disconnect(sock: socket.socket) -> None:
    """Take leave of the server politely; the socket is closed."""
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(sock, client.encode_request(wire.CMD_DISC, 0))
    sock.close()
