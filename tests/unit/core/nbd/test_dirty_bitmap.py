"""A dirty bitmap over NBD: what the server says of it is bounded, and never becomes more than it said."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from nbd_double import Asked, Export, Line, error, speaking, status

from pybackup.core.errors import SourceError
from pybackup.core.nbd.dirty_bitmap import DirtyRange, NbdDirtyBitmap
from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.formats import nbd_wire as wire

GRANULARITY = 65536
SIZE = 10 * GRANULARITY
Answer = Callable[[Asked], bytes]


def asked_of(path: Path, answer: Answer, offset: int, export: Export | None = None) -> list[DirtyRange] | None:
    """What is told of the ranges from an offset on; None where no bitmap is offered."""

    async def speak(line: Line) -> None:
        await line.negotiate(export or Export(SIZE, name=f"{wire.DIRTY_BITMAP}changed"))
        while True:
            line.send(answer(await line.request()))

    async def prepare(_: socket.socket) -> None:
        """Nothing to do."""

    async def within() -> list[DirtyRange] | None:
        async with speaking(str(path / "nbd.sock"), speak):
            address = NbdAddress("disk", socket=str(path / "nbd.sock"))
            bitmap = await NbdDirtyBitmap.connect(
                address, "changed", granularity=GRANULARITY, prepare=prepare, data_at_once=4 * wire.DESCRIPTOR.size
            )
            if bitmap is None:
                return None
            try:
                return list(await bitmap.ranges(offset))
            finally:
                await bitmap.abort()

    return asyncio.run(within())


def test_no_more_is_asked_than_fits_into_a_reply(tmp_path: Path) -> None:
    lengths = []

    def answer(asked: Asked) -> bytes:
        lengths.append(asked.length)
        return status(asked.cookie, [(GRANULARITY, 1), (3 * GRANULARITY, 0)])

    found = asked_of(tmp_path, answer, 2 * GRANULARITY)
    assert lengths == [4 * GRANULARITY]
    assert found == [
        DirtyRange(2 * GRANULARITY, 3 * GRANULARITY, dirty=True),
        DirtyRange(3 * GRANULARITY, 6 * GRANULARITY, dirty=False),
    ]


def test_flags_that_nobody_knows_may_mean_dirty(tmp_path: Path) -> None:
    found = asked_of(tmp_path, lambda asked: status(asked.cookie, [(512, 0), (512, 1 << 31)]), 0)
    assert found == [DirtyRange(0, 512, dirty=False), DirtyRange(512, 1024, dirty=True)]


def test_nothing_lies_behind_the_end(tmp_path: Path) -> None:
    found = asked_of(tmp_path, lambda asked: status(asked.cookie, [(1 << 31, 0), (512, 1)]), 9 * GRANULARITY)
    assert found == [DirtyRange(9 * GRANULARITY, SIZE, dirty=False)]


def test_what_tells_of_another_context_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="tells nothing of its bitmap"):
        asked_of(tmp_path, lambda asked: status(asked.cookie, [(512, 0)], context=8), 0)


def test_a_server_that_refuses(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not now"):
        asked_of(tmp_path, lambda asked: error(asked.cookie, wire.NBD_EIO, b"not now"), 0)


def test_a_server_that_talks_nonsense(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no reply"):
        asked_of(tmp_path, lambda _: bytes(64), 0)


@pytest.mark.parametrize("export", [Export(SIZE), Export(SIZE, context=False), Export(SIZE, structured=False)])
def test_a_bitmap_that_is_not_offered(tmp_path: Path, export: Export) -> None:
    assert asked_of(tmp_path, lambda _: b"", 0, export) is None


def test_a_server_that_is_none(tmp_path: Path) -> None:
    async def speak(line: Line) -> None:
        line.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def within() -> None:
        async with speaking(str(tmp_path / "x"), speak):
            await NbdDirtyBitmap.connect(
                NbdAddress("disk", socket=str(tmp_path / "x")), "x", granularity=1, prepare=_nothing, data_at_once=4096
            )

    with pytest.raises(SourceError, match="cannot be read: this is no NBD server"):
        asyncio.run(within())


async def _nothing(_: socket.socket) -> None:
    """Nothing to prepare."""
