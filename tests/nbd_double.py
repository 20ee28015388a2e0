"""An NBD server for tests of our client: it can do little where a test wants that, and lies where a test wants that.

A test gives a coroutine that speaks on each connection; Line has the words. Nothing of our own server is used, and of
the client's modules only the constants.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from pybackup.formats import nbd_wire as wire

ALL_FLAGS = (
    wire.FLAG_HAS_FLAGS
    | wire.FLAG_SEND_FLUSH
    | wire.FLAG_SEND_FUA
    | wire.FLAG_SEND_TRIM
    | wire.FLAG_SEND_WRITE_ZEROES
    | wire.FLAG_SEND_FAST_ZERO
)
CONTEXT = 7
"""The id of base:allocation: not the 1 that everybody uses."""


class Asked(NamedTuple):
    """A request."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""

    @property
    def end(self) -> int:
        return self.offset + self.length


def greeting(magic: int = wire.NBD_MAGIC, option_magic: int = wire.OPTION_MAGIC, flags: int = 3) -> bytes:
    return wire.GREETING.pack(magic, option_magic, flags)


def option_reply(option: int, kind: int, data: bytes = b"", length: int | None = None) -> bytes:
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data) if length is None else length) + data


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, cookie) + data


def chunk(cookie: int, kind: int, payload: bytes = b"", done: bool = False, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return wire.CHUNK.pack(wire.CHUNK_MAGIC, int(done), kind, cookie, size) + payload


def data(cookie: int, offset: int, content: bytes, done: bool = False) -> bytes:
    return chunk(cookie, wire.CHUNK_OFFSET_DATA, struct.pack(">Q", offset) + content, done)


def hole(cookie: int, offset: int, length: int, done: bool = False) -> bytes:
    return chunk(cookie, wire.CHUNK_OFFSET_HOLE, struct.pack(">QI", offset, length), done)


def done(cookie: int) -> bytes:
    return chunk(cookie, wire.CHUNK_NONE, done=True)


def error(cookie: int, number: int = wire.NBD_EIO, message: bytes = b"", last: bool = True) -> bytes:
    return chunk(cookie, wire.CHUNK_ERROR, struct.pack(">IH", number, len(message)) + message, last)


def status(cookie: int, extents: Sequence[tuple[int, int]], context: int = CONTEXT, last: bool = True) -> bytes:
    payload = struct.pack(">I", context) + b"".join(struct.pack(">II", *extent) for extent in extents)
    return chunk(cookie, wire.CHUNK_BLOCK_STATUS, payload, last)


@dataclass
class Export:
    """What a handshake tells; ``blocks``: smallest, preferred and largest in bytes; ``name`` of the context."""

    size: int = 1 << 20
    flags: int = ALL_FLAGS
    structured: bool = True
    context: bool = True
    name: str = wire.BASE_ALLOCATION
    blocks: tuple[int, int, int] | None = None


class Line:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader, self.writer, self.number = reader, writer, number

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def greet(self) -> None:
        self.send(greeting())
        await self.reader.readexactly(4)

    async def option(self) -> tuple[int, bytes]:
        _, option, length = wire.OPTION.unpack(await self.reader.readexactly(wire.OPTION.size))
        return option, await self.reader.readexactly(length)

    async def negotiate(self, export: Export) -> None:
        """A handshake without tricks."""
        await self.greet()
        while True:
            option, _ = await self.option()
            if option == wire.OPT_STRUCTURED_REPLY and export.structured:
                self.send(option_reply(option, wire.REP_ACK))
            elif option == wire.OPT_SET_META_CONTEXT and export.context:
                name = struct.pack(">I", CONTEXT) + export.name.encode()
                self.send(option_reply(option, wire.REP_META_CONTEXT, name), option_reply(option, wire.REP_ACK))
            elif option == wire.OPT_GO:
                self.go(export)
                return
            else:
                self.send(option_reply(option, wire.REP_ERR_UNSUP))

    def go(self, export: Export) -> None:
        info = wire.INFO_EXPORT_REPLY.pack(wire.INFO_EXPORT, export.size, export.flags)
        self.send(option_reply(wire.OPT_GO, wire.REP_INFO, info))
        if export.blocks:
            sizes = wire.INFO_BLOCK_SIZE_REPLY.pack(wire.INFO_BLOCK_SIZE, *export.blocks)
            self.send(option_reply(wire.OPT_GO, wire.REP_INFO, sizes))
        self.send(option_reply(wire.OPT_GO, wire.REP_ACK))

    async def request(self) -> Asked:
        """The next request; EOFError when the client takes its leave."""
        magic, *numbers = wire.REQUEST.unpack(await self.reader.readexactly(wire.REQUEST.size))
        assert magic == wire.REQUEST_MAGIC
        asked = Asked(*numbers)
        if asked.command == wire.CMD_DISC:
            raise EOFError
        if asked.command == wire.CMD_WRITE:
            return asked._replace(data=await self.reader.readexactly(asked.length))
        return asked

    async def requests(self, number: int) -> list[Asked]:
        return [await self.request() for _ in range(number)]

    async def until_gone(self) -> None:
        """Say nothing more, until the client closes the connection."""
        while await self.reader.read(1 << 16):
            pass


Speaking = Callable[[Line], Awaitable[None]]


@asynccontextmanager
async def speaking(path: str, speak: Speaking) -> AsyncIterator[list[BaseException]]:
    """A server on a Unix socket; what a speaker failed with, unless the client has just gone, fails the test."""
    failures: list[BaseException] = []
    tasks: set[asyncio.Task[None]] = set()
    numbers = iter(range(1000))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await speak(Line(reader, writer, next(numbers)))
        except (EOFError, ConnectionError):
            pass
        except Exception as failure:
            failures.append(failure)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_unix_server(connected, path)
    try:
        yield failures
    finally:
        server.close()
        while tasks:
            await asyncio.wait(tasks)
    if failures:
        raise failures[0]


class PlainDisk:
    """Serves a disk in memory honestly, and insists on the block size that it told.

    Each request is answered only after the loop has gone round a few times, so requests overlap. Changing: the disk.
    """

    def __init__(self, contents: bytes, export: Export) -> None:
        self.disk, self.export = bytearray(contents), export
        self.export.size = len(contents)
        self.commands: list[int] = []

    async def __call__(self, line: Line) -> None:
        await line.negotiate(self.export)
        async with asyncio.TaskGroup() as group:
            with suppress(EOFError):
                while True:
                    group.create_task(self._answer(line, await line.request()))

    async def _answer(self, line: Line, asked: Asked) -> None:
        for _ in range(3 + asked.cookie % 5):
            await asyncio.sleep(0)
        self.commands.append(asked.command)
        line.send(self._reply(asked))

    def _reply(self, asked: Asked) -> bytes:
        if self._is_wrong(asked):
            return self._error(asked, wire.NBD_EINVAL)
        if asked.command == wire.CMD_READ:
            content = bytes(self.disk[asked.offset : asked.end])
            structured = self.export.structured
            return data(asked.cookie, asked.offset, content, True) if structured else simple(asked.cookie, 0, content)
        if asked.command == wire.CMD_BLOCK_STATUS:
            # Less than was asked, in a shape that only begins well: neighbours alike, the last behind the end.
            half = max(1, asked.length // 2)
            zero = wire.STATE_ZERO if not any(self.disk[asked.offset : asked.offset + 2 * half]) else 0
            return status(asked.cookie, [(half, zero), (half, zero | wire.STATE_HOLE), (1 << 31, 0)][: 2 + half % 2])
        self._change(asked)
        return simple(asked.cookie)

    def _is_wrong(self, asked: Asked) -> bool:
        smallest, _, largest = self.export.blocks or (1, 512, 1 << 25)
        needed = {
            wire.CMD_FLUSH: wire.FLAG_SEND_FLUSH,
            wire.CMD_TRIM: wire.FLAG_SEND_TRIM,
            wire.CMD_WRITE_ZEROES: wire.FLAG_SEND_WRITE_ZEROES,
        }.get(asked.command, 0)
        has_payload = asked.command in (wire.CMD_READ, wire.CMD_WRITE)
        return bool(
            asked.offset % smallest
            or asked.length % smallest
            or asked.end > len(self.disk)
            or (has_payload and asked.length > largest)
            or (not asked.length and asked.command != wire.CMD_FLUSH)
            or (needed & ~self.export.flags)
            or (asked.flags & wire.CMD_FLAG_FAST_ZERO and not self.export.flags & wire.FLAG_SEND_FAST_ZERO)
        )

    def _change(self, asked: Asked) -> None:
        assert not self.export.flags & wire.FLAG_READ_ONLY, "the client changes a disk that is read-only"
        if asked.command == wire.CMD_WRITE:
            self.disk[asked.offset : asked.end] = asked.data
        elif asked.command == wire.CMD_WRITE_ZEROES:
            self.disk[asked.offset : asked.end] = bytes(asked.length)
        elif asked.command == wire.CMD_TRIM:
            self.disk[asked.offset : asked.end] = b"\xee" * asked.length

    def _error(self, asked: Asked, number: int) -> bytes:
        structured = self.export.structured and asked.command in (wire.CMD_READ, wire.CMD_BLOCK_STATUS)
        return error(asked.cookie, number) if structured else simple(asked.cookie, number)
