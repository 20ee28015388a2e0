"""An NBD client for tests: it speaks the protocol as plainly as it can, and also wrongly where a test wants that."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from pybackup.formats import nbd_client_wire as client
from pybackup.formats import nbd_wire as wire


@dataclass
class Reply:
    """A whole reply, whatever its style: NBD errno, message, data, and (length, status) of extents."""

    cookie: int
    error: int = 0
    message: str = ""
    data: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)


class NbdPeer:
    """One connection. Reads are remembered, for a simple reply does not say how long it is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.cookies = count(1)
        self.reads: dict[int, tuple[int, int]] = {}
        self.chunks: dict[int, bytes] = {}

    @classmethod
    async def greet(cls, path: str) -> NbdPeer:
        """Connect to a Unix socket and begin the handshake."""
        return await cls(*await asyncio.open_unix_connection(path))._begin()

    @classmethod
    async def greet_tcp(cls, host: str, port: int) -> NbdPeer:
        return await cls(*await asyncio.open_connection(host, port))._begin()

    @classmethod
    async def connect(cls, path: str, export: str = "", structured: bool = True) -> NbdPeer:
        """Connect and go to an export, with base:allocation where that is possible."""
        peer = await cls.greet(path)
        if structured:
            assert (await peer.option(wire.OPT_STRUCTURED_REPLY))[-1][0] == wire.REP_ACK
            await peer.send(client.encode_meta_context(export, [wire.BASE_ALLOCATION]))
            assert [kind for kind, _ in await peer.option_replies()] == [wire.REP_META_CONTEXT, wire.REP_ACK]
        assert await peer.go(export)
        return peer

    async def _begin(self) -> NbdPeer:
        flags = client.decode_greeting(await self.reader.readexactly(wire.GREETING.size))
        await self.send(client.encode_client_flags(flags))
        return self

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        await self.send(client.encode_option(option, data))
        return await self.option_replies()

    async def option_replies(self) -> list[tuple[int, bytes]]:
        """(kind, data) of all replies to one option, the ACK or error included."""
        replies: list[tuple[int, bytes]] = []
        while not replies or not (replies[-1][0] == wire.REP_ACK or replies[-1][0] & wire.REP_ERROR):
            header = client.decode_option_reply(await self.reader.readexactly(wire.OPTION_REPLY.size))
            replies.append((header.kind, await self.reader.readexactly(header.length)))
        return replies

    async def go(self, export: str = "") -> client.Export | None:
        """Choose an export; None when it is refused."""
        await self.send(client.encode_go(export))
        replies = await self.option_replies()
        infos = [client.decode_info_export(data) for kind, data in replies if kind == wire.REP_INFO]
        return next((info for info in infos if info), None) if replies[-1][0] == wire.REP_ACK else None

    def start(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> int:
        """Write a request without waiting for anything; return its cookie."""
        cookie = next(self.cookies)
        if command == wire.CMD_READ:
            self.reads[cookie] = offset, length
        self.writer.write(client.encode_request(command, cookie, offset, length or len(data), flags) + data)
        return cookie

    async def reply(self) -> Reply:
        """The next reply that is whole, whichever request it is for; chunks of others may come between."""
        while True:
            start = await self.reader.readexactly(client.REPLY_START_SIZE)
            if not client.is_chunk(start):
                simple = client.decode_simple_reply(start)
                _, length = self.reads.pop(simple.cookie, (0, 0))
                data = b"" if simple.error else await self.reader.readexactly(length)
                return Reply(simple.cookie, simple.error, data=data)
            if (reply := await self._chunk(start)) is not None:
                return reply

    async def _chunk(self, start: bytes) -> Reply | None:
        """Take a chunk; the reply, when it was the last of one. Data comes in order."""
        chunk = client.decode_chunk(start + await self.reader.readexactly(client.CHUNK_REST_SIZE))
        payload = await self.reader.readexactly(chunk.length)
        reply = Reply(chunk.cookie)
        if chunk.kind & wire.CHUNK_ERROR_BIT:
            reply.error, reply.message = client.decode_error(payload)
            self.chunks.pop(chunk.cookie, None)
        elif chunk.kind == wire.CHUNK_OFFSET_DATA:
            begin, length = self.reads[chunk.cookie]
            (offset,) = struct.unpack(">Q", payload[:8])
            before = self.chunks.pop(chunk.cookie, b"")
            assert offset == begin + len(before)
            reply.data = before + payload[8:]
            if not chunk.done:
                self.chunks[chunk.cookie] = reply.data
                return None
            assert len(reply.data) == length
        elif chunk.kind == wire.CHUNK_BLOCK_STATUS:
            context, reply.extents = client.decode_block_status(payload)
            assert context == 1
        assert chunk.done
        self.reads.pop(chunk.cookie, None)
        return reply

    async def ask(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> Reply:
        """One request and its reply, with nothing else in flight."""
        cookie = self.start(command, offset, length, flags, data)
        reply = await self.reply()
        assert reply.cookie == cookie
        return reply

    async def replies(self, number: int) -> dict[int, Reply]:
        """So many replies, by cookie."""
        found = [await self.reply() for _ in range(number)]
        return {reply.cookie: reply for reply in found}

    async def is_cut_off(self) -> bool:
        """Wait for the server to close the connection, and throw away what it sends before."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            return True
        return True

    async def leave(self) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)


async def leave(peers: Sequence[NbdPeer]) -> None:
    for peer in peers:
        await peer.leave()
