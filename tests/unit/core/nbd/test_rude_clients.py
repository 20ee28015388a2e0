from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nbd_peer import NbdPeer, leave
from nbd_serving import SIZE, Watched, run, serving, until

from pybackup.core.nbd import connection as nbd_connection
from pybackup.core.nbd import send_queue
from pybackup.formats import nbd_wire as wire


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "nbd.sock")


def test_a_client_that_vanishes_in_the_middle_of_a_write_changes_nothing(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device) as server:
            other = await NbdPeer.connect(path)
            for length in (100, 4096, 200_000):
                peer = await NbdPeer.connect(path)
                peer.start(wire.CMD_WRITE, 0, length, data=b"x" * (length - 1))
                await peer.leave()
                await until(lambda: server.connections == 1)
            assert (await other.ask(wire.CMD_READ, 0, SIZE)).data == bytes(SIZE)
            await other.leave()

    run(test())


def test_a_write_that_was_whole_is_done_though_nobody_waits(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device) as server:
            peer = await NbdPeer.connect(path)
            device.shut()
            for offset in range(20):
                peer.start(wire.CMD_WRITE, offset, data=b"x")
            await peer.send(b"")
            await peer.leave()
            await until(lambda: len(device.calls) == 20)
            device.gate.set()
            await until(lambda: server.connections == 0)
            assert device.memory.contents()[:21] == b"x" * 20 + b"\0"

    run(test())


@pytest.mark.parametrize("noise", [b"x" * 28, bytes(1000), b"GET / HTTP/1.1\r\n\r\n" + bytes(10)])
def test_nonsense_ends_only_its_own_connection(path: str, noise: bytes) -> None:
    async def test() -> None:
        async with serving(path, Watched()) as server:
            good = await NbdPeer.connect(path)
            bad = await NbdPeer.connect(path)
            worse = NbdPeer(*await asyncio.open_unix_connection(path))
            for peer in (bad, worse):
                await peer.send(noise)
                if noise != bytes(1000) or peer is bad:
                    assert await peer.is_cut_off()
            assert (await good.ask(wire.CMD_READ, 0, 1)).data == b"\0"
            assert server.connections == 1
            await leave([good, bad, worse])

    run(test())


def test_a_flood_of_slow_requests_is_bounded(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device) as server:
            flood, other = await NbdPeer.connect(path), await NbdPeer.connect(path)
            device.shut()
            cookies = {flood.start(wire.CMD_READ, 0, 1) for _ in range(600)}
            await until(lambda: len(device.calls) == nbd_connection.MAX_REQUESTS)
            device.inline = True
            assert (await other.ask(wire.CMD_READ, 0, 1)).error == 0
            assert len(device.calls) == server.requests_in_flight == nbd_connection.MAX_REQUESTS
            device.inline = False
            device.gate.set()
            assert set(await flood.replies(600)) == cookies
            await leave([flood, other])

    run(test())


def test_a_slow_reader_fills_no_memory_and_holds_up_nobody(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device):
            reader, writer = await asyncio.open_unix_connection(path, limit=1024)
            slow = await NbdPeer(reader, writer)._begin()
            assert await slow.go()
            other = await NbdPeer.connect(path)
            for _ in range(1000):
                slow.start(wire.CMD_READ, 0, 65536)
            # The queue is full when nothing more is read although the others go on.
            seen = -1
            while seen != device.bytes_read:
                seen = device.bytes_read
                for _ in range(20):
                    assert (await other.ask(wire.CMD_WRITE, 0, data=b"x")).error == 0
            room = send_queue.FULL_BYTES + nbd_connection.BATCH_BYTES + (4 << 20)
            assert seen < room, "4 MiB are more than the socket and the client hold"
            assert len(await slow.replies(1000)) == 1000
            await leave([slow, other])

    run(test())


def test_a_flood_of_quick_requests_leaves_time_for_others(path: str) -> None:
    async def test() -> None:
        async with serving(path, Watched()):
            flood, other = await NbdPeer.connect(path), await NbdPeer.connect(path)
            for _ in range(20_000):
                flood.start(wire.CMD_WRITE, 0, data=bytes(512))
            done = asyncio.create_task(flood.replies(20_000))
            for _ in range(10):
                assert (await other.ask(wire.CMD_READ, 0, 1)).error == 0
            assert not done.done()
            assert len(await done) == 20_000
            await leave([flood, other])

    run(test())
