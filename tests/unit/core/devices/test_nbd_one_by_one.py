"""Where replies must fit into a socket that nobody reads: one request after the other, each with a bounded reply."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise
from pathlib import Path

import pytest
import virtual_time
from device_contract import pattern
from nbd_double import ALL_FLAGS, Asked, Export, Line, data, speaking, status

from pybackup.core.errors import SourceError
from pybackup.core.nbd.client import NbdDevice
from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.formats import nbd_wire as wire

ROOM = 4096
SECTOR = 512


class Bounded:
    """A server that fails when it is asked for a reply before it has sent another, or for one of more than ROOM bytes.

    Its disk has data and holes in turn, each as long as told. Changing: what was asked.
    """

    def __init__(self, contents: bytes, run: int, flags: int = ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN) -> None:
        self.contents, self.run = contents, run
        self.export = Export(size=len(contents), flags=flags)
        self.asked: list[Asked] = []
        self.lines = 0

    async def __call__(self, line: Line) -> None:
        await line.negotiate(self.export)
        self.lines += 1
        while True:
            asked = await line.request()
            self.asked.append(asked)
            # Whoever asks for more now does it within this time.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await line.reader.readexactly(1)
            line.send(self._reply(asked))

    def _reply(self, asked: Asked) -> bytes:
        if asked.command == wire.CMD_READ:
            assert asked.length <= ROOM
            assert asked.flags == (wire.CMD_FLAG_DF if self.export.flags & wire.FLAG_SEND_DF else 0)
            return data(asked.cookie, asked.offset, self.contents[asked.offset : asked.end], True)
        assert asked.command == wire.CMD_BLOCK_STATUS
        edges = [asked.offset, *range((asked.offset // self.run + 1) * self.run, asked.end, self.run), asked.end]
        extents = [(high - low, wire.STATE_ZERO * (low // self.run % 2)) for low, high in pairwise(edges)]
        if asked.flags & wire.CMD_FLAG_REQ_ONE:
            extents = extents[:1]
        assert len(extents) * 8 <= ROOM
        return status(asked.cookie, extents)


async def connected(path: str, **options: object) -> NbdDevice:
    return await NbdDevice.connect(NbdAddress("", socket=path), data_at_once=ROOM, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("flags", [ALL_FLAGS, ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN, wire.FLAG_HAS_FLAGS])
def test_everything_is_read(tmp_path: Path, flags: int) -> None:
    contents = pattern(100_000)
    server = Bounded(contents, 1000, flags)

    async def test() -> None:
        path = str(tmp_path / "nbd.sock")
        async with speaking(path, server):
            device = await connected(path)
            ranges = [(0, 50_000), (50_000, 50_000), (1, 4096), (99_999, 1)]
            found = await asyncio.gather(*(device.pread(*one) for one in ranges))
            assert found == [contents[offset : offset + length] for offset, length in ranges]
            await device.close()

    virtual_time.run(test())
    assert server.lines == (4 if flags & wire.FLAG_CAN_MULTI_CONN else 1)


@pytest.mark.parametrize("run", [SECTOR, 65536, 1 << 20])
def test_the_status_of_short_and_of_long_extents(tmp_path: Path, run: int) -> None:
    size = 4 << 20
    server = Bounded(bytes(size), run)

    async def test() -> None:
        path = str(tmp_path / "nbd.sock")
        async with speaking(path, server):
            device = await connected(path)
            at = 0
            while at < size:
                for extent in await device.extents(at, size - at):
                    assert extent.offset == at and extent.zero == bool(at // run % 2)
                    at += extent.length
                    assert at % run == 0 or at % (ROOM // 8 * SECTOR) == 0
            await device.close()

    virtual_time.run(test())
    if run == 1 << 20:
        assert len(server.asked) == 4, "a long extent is told at once"


def test_requests_that_wait_fail_with_the_connection(tmp_path: Path) -> None:
    async def hang_up(line: Line) -> None:
        await line.negotiate(Export(size=1 << 20))
        await line.request()

    async def test() -> None:
        path = str(tmp_path / "nbd.sock")
        async with speaking(path, hang_up):
            device = await connected(path)
            reads = (device.pread(offset, 100_000) for offset in range(0, 500_000, 100_000))
            found = await asyncio.gather(*reads, return_exceptions=True)
            assert all("ended the connection" in str(one) for one in found) and len(found) == 5
            await device.close()

    virtual_time.run(test())


def test_a_wait_that_is_cancelled_lets_the_next_go_on(tmp_path: Path) -> None:
    contents = pattern(40_000)

    async def test() -> None:
        path = str(tmp_path / "nbd.sock")
        async with speaking(path, Bounded(contents, 1000, ALL_FLAGS)):
            device = await connected(path)
            first = asyncio.create_task(device.pread(0, 20_000))
            second = asyncio.create_task(device.pread(20_000, 20_000))
            await asyncio.sleep(0.5)
            second.cancel()
            assert await first == contents[:20_000]
            assert await device.pread(100, 100) == contents[100:200]
            await device.close()

    virtual_time.run(test())


def test_whoever_prepares_a_socket_sees_to_its_end(tmp_path: Path) -> None:
    """No leave is taken of a server that might not survive it, where an export is of no use."""
    seen: list[str] = []

    async def empty(line: Line) -> None:
        await line.negotiate(Export(size=0))
        seen.append((await line.reader.read()).hex())

    async def prepare(sock: socket.socket) -> None:
        seen.append("prepared")

    async def test() -> None:
        path = str(tmp_path / "nbd.sock")
        async with speaking(path, empty):
            with pytest.raises(SourceError, match="is empty"):
                await connected(path, prepare=prepare)

    virtual_time.run(test())
    assert seen == ["prepared", ""]
