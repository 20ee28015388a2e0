"""NBD servers that mean no good, or are broken: an honest one, of whose messages some are spoilt at random."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nbd_double import Export, Line, PlainDisk, speaking

HEADER = 40
"""Bytes at the beginning of a message in which bits are flipped: what follows is data, whose lies nobody sees."""
STALL = 0.3
"""Seconds until a server that says nothing more goes."""


class BrokenLine(Line):
    """Spoils what is sent. Changing: how many messages there were, what is held back, and whether it has lied."""

    def __init__(self, line: Line, draw: random.Random, told: list[str]) -> None:
        super().__init__(line.reader, line.writer, line.number)
        self._draw, self._told = draw, told
        self._at = draw.randrange(draw.choice([2, 12, 60]))
        self._again = draw.choice([0.0, 0.0, 0.3])
        self._count = 0
        self._held = b""

    def send(self, *parts: bytes) -> None:
        message, self._held = self._held + b"".join(parts), b""
        is_spoilt = self._count == self._at or (self._count > self._at and self._draw.random() < self._again)
        self._count += 1
        if is_spoilt and message:
            name = self._draw.choice(list(_WAYS))
            self._told.append(name)
            _WAYS[name](self, message)
        else:
            self._write(message)

    def _write(self, message: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(message)

    def _go(self) -> None:
        asyncio.get_running_loop().call_later(STALL, self.writer.close)

    def cut(self, message: bytes) -> None:
        self._write(message[: self._draw.randrange(len(message))])
        self.writer.close()

    def stall(self, message: bytes) -> None:
        self._write(message[: self._draw.randrange(len(message))])
        self._go()

    def double(self, message: bytes) -> None:
        self._write(message + message)

    def hold(self, message: bytes) -> None:
        self._held = message
        self._go()

    def insert(self, message: bytes) -> None:
        self._write(self._draw.randbytes(self._draw.choice([1, 4, 16, 1000])) + message)
        self._go()

    def flip(self, message: bytes) -> None:
        changed = bytearray(message)
        changed[self._draw.randrange(min(HEADER, len(message)))] ^= 1 << self._draw.randrange(8)
        self._write(changed)
        self._go()

    def large(self, message: bytes) -> None:
        changed = bytearray(message)
        at = self._draw.randrange(min(HEADER, len(message)))
        changed[at : at + 4] = self._draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x02\0\0\x01"])
        self._write(changed)
        self._go()


_WAYS: dict[str, Callable[[BrokenLine, bytes], None]] = {
    "cut": BrokenLine.cut,
    "stall": BrokenLine.stall,
    "double": BrokenLine.double,
    "hold": BrokenLine.hold,
    "insert": BrokenLine.insert,
    "flip": BrokenLine.flip,
    "large": BrokenLine.large,
}
LIES = {"insert", "flip", "large"}
"""What can be right by chance, and say something else."""


@contextmanager
def hostile_server(path: str, contents: bytes, draw: random.Random) -> Iterator[tuple[PlainDisk, list[str]]]:
    """In a thread of its own: the disk behind it, and how its messages were spoilt so far."""
    disk = PlainDisk(contents, Export(structured=draw.random() < 0.7, context=draw.random() < 0.7))
    told: list[str] = []
    failures: list[BaseException] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def speak(line: Line) -> None:
        try:
            await disk(BrokenLine(line, draw, told))
        except* ConnectionError:
            pass  # the client has seen enough

    async def serve() -> None:
        async with speaking(path, speak):
            ready.set()
            await over.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as failure:
            failures.append(failure)
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield disk, told
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
    if failures:
        raise failures[0]
