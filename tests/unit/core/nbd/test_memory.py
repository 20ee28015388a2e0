"""What all clients of a server hold together, and reads and writes that are too long to be in memory whole."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbd_peer import NbdPeer, leave
from nbd_serving import Watched, run, serving, until

from pybackup.core.device import Buffer
from pybackup.core.nbd.connection import OVERHEAD
from pybackup.core.nbd.memory_shares import BATCH, OWN, POOL, MemoryPool, MemoryShare
from pybackup.core.nbd.server import NbdServer
from pybackup.formats import nbd_wire as wire
from pybackup.formats.nbd_transmission import LONG

DF, FUA = wire.CMD_FLAG_DF, wire.CMD_FLAG_FUA
CONTENT = random.Random(5).randbytes(LONG + 77) * 9
LENGTHS = [LONG, LONG + 1, 2 * LONG, 5 * LONG + 5, 8 * LONG]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "nbd.sock")


def held(server: NbdServer) -> int:
    """Bytes that connections hold of requests and replies; a buffer of which something is left is there as a whole."""
    return sum(
        one._bytes_in_flight + one._reader.receiving + sum(map(whole, one._queue.pending))
        for one in server._connections
    )


def whole(buffer: Buffer) -> int:
    """Bytes of memory that a buffer keeps."""
    return whole(buffer.obj) if isinstance(buffer, memoryview) else len(buffer)


class Failing(Watched):
    """Fails with EIO where a test wants it: reads and writes that touch ``bad``, from the ``good``-th touch on."""

    bad = -1
    good = 0

    def _fail(self, offset: int, length: int) -> None:
        if offset <= self.bad < offset + length:
            self.good -= 1
            if self.good < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def pread(self, offset: int, length: int) -> Buffer:
        self._fail(offset, length)
        return await super().pread(offset, length)

    async def pwrite(self, offset: int, data: Buffer) -> None:
        self._fail(offset, len(data))
        await super().pwrite(offset, data)


# -- shares --


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3 * POOL)), max_size=60))
def test_whoever_holds_little_has_room_whatever_the_others_hold(steps: list[tuple[int, int]]) -> None:
    pool = MemoryPool()
    shares = [MemoryShare(pool) for _ in range(6)]
    for number, size in steps:
        room = shares[number].room(size)
        assert room == OWN - size if size < OWN else room in (0, BATCH)
        assert not room or size - shares[number].borrowed < OWN
        assert pool.free == POOL - sum(share.borrowed for share in shares) and pool.free > 0
    for share in shares:
        share.give_back()
    assert pool.free == POOL


# -- long requests --


@pytest.mark.parametrize(("structured", "flags"), [(True, 0), (True, DF), (False, 0)])
def test_long_reads_come_whole_beside_others(path: str, structured: bool, flags: int) -> None:
    async def test() -> None:
        device = Watched(CONTENT)
        async with serving(path, device) as server:
            peer = await NbdPeer.connect(path, structured=structured)
            asked = {}
            for number in range(25):
                length = LENGTHS[number // 2 % 5] if number % 2 else 5000
                offset = number * 4096 % (len(CONTENT) - length)
                asked[peer.start(wire.CMD_READ, offset, length, flags)] = CONTENT[offset : offset + length]
            assert {cookie: one.data for cookie, one in (await peer.replies(25)).items()} == asked
            assert max(length for name, _, length in device.calls if name == "pread") == LONG
            assert held(server) == 0
            await peer.leave()

    run(test())


@pytest.mark.parametrize(("structured", "flags"), [(True, 0), (True, DF), (False, 0)])
@pytest.mark.parametrize("piece", [0, 2, 4])
def test_a_long_read_that_fails_is_an_error_and_no_more(path: str, structured: bool, flags: int, piece: int) -> None:
    async def test() -> None:
        device = Failing(CONTENT)
        device.bad = piece * LONG + 5
        async with serving(path, device) as server:
            peer = await NbdPeer.connect(path, structured=structured)
            bad, good = peer.start(wire.CMD_READ, 0, 5 * LONG, flags), peer.start(wire.CMD_READ, 0, 100, flags)
            found = await peer.replies(2)
            assert found[bad].error == wire.NBD_EIO and found[good].data == CONTENT[:100]
            assert held(server) == 0
            await peer.leave()

    run(test())


def test_a_reply_that_has_begun_and_fails_ends_the_connection(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        device = Failing(CONTENT)
        device.bad, device.good = 3 * LONG, 1
        async with serving(path, device) as server:
            peer = await NbdPeer.connect(path, structured=False)
            peer.start(wire.CMD_READ, 0, 5 * LONG)
            assert await peer.is_cut_off()
            await until(lambda: server.connections == 0)
            assert "a read failed when half of it was sent: Input/output error" in caplog.text.replace("[Errno 5] ", "")
            await peer.leave()

    run(test())


@pytest.mark.parametrize("flags", [0, FUA])
def test_long_writes_are_written_in_parts_and_answered_once(path: str, flags: int) -> None:
    async def test() -> None:
        device = Watched(len(CONTENT))
        async with serving(path, device) as server:
            peer = await NbdPeer.connect(path)
            for length in LENGTHS[1:]:
                device.calls.clear()
                cookies = {
                    peer.start(wire.CMD_WRITE, 77, flags=flags, data=CONTENT[:length]),
                    peer.start(wire.CMD_READ),
                }
                found = await peer.replies(2)
                assert set(found) == cookies and not any(one.error for one in found.values())
                assert device.memory.contents()[77 : 77 + length] == CONTENT[:length]
                written = [call[2] for call in device.calls if call[0] == "pwrite"]
                assert sum(written) == length and max(written) <= LONG
                assert device.calls.count(("flush",)) == bool(flags)
                assert held(server) == 0
            await peer.leave()

    run(test())


@pytest.mark.parametrize("length", [LONG - 1, LONG, 3 * LONG + 1])
def test_a_write_is_received_to_its_end_though_others_have_the_whole_pool(path: str, length: int) -> None:
    async def test() -> None:
        device = Watched(len(CONTENT))
        async with serving(path, device) as server:
            server._memory.free = 0
            peer = await NbdPeer.connect(path)
            cookie = peer.start(wire.CMD_WRITE, 0, length)
            for at in range(0, length, LONG // 3):  # in pieces, of which none is all
                await peer.send(CONTENT[at : min(length, at + LONG // 3)])
                await asyncio.sleep(0)
            assert (await peer.reply()).cookie == cookie
            assert device.memory.contents()[:length] == CONTENT[:length]
            server._memory.free = POOL
            await peer.leave()

    run(test())


def test_a_long_write_that_fails_is_one_error(path: str) -> None:
    async def test() -> None:
        device = Failing(len(CONTENT))
        device.bad = LONG + 5
        async with serving(path, device) as server:
            peer = await NbdPeer.connect(path)
            assert (await peer.ask(wire.CMD_WRITE, 0, flags=FUA, data=CONTENT[: 6 * LONG])).error == wire.NBD_EIO
            assert ("flush",) not in device.calls
            assert (await peer.ask(wire.CMD_WRITE, 2 * LONG, data=CONTENT[: 6 * LONG])).error == 0
            assert device.memory.contents()[2 * LONG : 8 * LONG] == CONTENT[: 6 * LONG]
            assert held(server) == 0
            await peer.leave()

    run(test())


@pytest.mark.parametrize("command", [wire.CMD_READ, wire.CMD_WRITE])
@pytest.mark.parametrize("structured", [True, False])
def test_a_client_that_goes_amid_a_long_request_leaves_nothing(path: str, command: int, structured: bool) -> None:
    async def test() -> None:
        device = Watched(CONTENT)
        async with serving(path, device) as server:
            for _ in range(3):
                peer = await NbdPeer.connect(path, structured=structured)
                for _ in range(3):
                    data = CONTENT[: 8 * LONG] if command == wire.CMD_WRITE else b""
                    peer.start(command, 0, 8 * LONG, data=data[: 5 * LONG + 99])
                await until(lambda: bool(device.calls))
                peer.writer.transport.abort()
                await until(lambda: server.connections == 0)
                assert server._memory.free == POOL
                device.calls.clear()

    run(test())


# -- clients that keep what they have --


def _greed(peer: NbdPeer, kind: int) -> None:
    """Ask for as much as can be, and never take an answer."""
    if kind == 0:
        for _ in range(40):
            peer.start(wire.CMD_READ, 0, 8 * LONG)
    elif kind == 1:
        peer.start(wire.CMD_WRITE, 0, 8 * LONG, data=bytes(7 * LONG + LONG // 2))
    elif kind == 2:
        for _ in range(40):
            peer.start(wire.CMD_READ, 0, LONG)
    elif kind == 3:
        for _ in range(300):
            peer.start(wire.CMD_BLOCK_STATUS, 0, LONG // 8)
    else:
        for _ in range(300):
            peer.start(wire.CMD_TRIM, 0, LONG)


@pytest.mark.parametrize("structured", [True, False])
def test_greedy_clients_hold_little_and_the_others_go_on(path: str, structured: bool) -> None:
    """The checked client reads and writes long pieces of its own part of the disk, and sees what it should."""

    async def test() -> None:
        device = Watched(CONTENT + CONTENT)
        async with serving(path, device) as server:
            greedy = []
            for number in range(20):
                reader, writer = await asyncio.open_unix_connection(path, limit=1024)
                greedy.append(await NbdPeer(reader, writer)._begin())
                assert await greedy[-1].go()
                _greed(greedy[-1], number % 5)
            checked = await NbdPeer.connect(path, structured=structured)
            most = 0
            for number in range(12):
                length, device.inline = LENGTHS[number % 5], number % 2 == 0
                data = random.Random(number).randbytes(length)
                offset = len(CONTENT) + number * 4096
                assert (await checked.ask(wire.CMD_WRITE, offset, data=data)).error == 0
                most = max(most, held(server))
                assert (await checked.ask(wire.CMD_READ, offset, length)).data == data
                most = max(most, held(server))
            assert most <= POOL + 21 * 2 * LONG + 21 * 256 * OVERHEAD
            await leave([*greedy, checked])

    run(test())


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("length", [LONG, 8 * LONG])
def test_readers_who_take_a_little_hold_a_piece_each(path: str, structured: bool, length: int) -> None:
    """What a socket has taken of a piece frees nothing, so the next is not read before."""

    async def test() -> None:
        device = Watched(CONTENT)
        async with serving(path, device) as server:
            greedy = []
            for _ in range(16):
                reader, writer = await asyncio.open_unix_connection(path, limit=1024)
                greedy.append(await NbdPeer(reader, writer)._begin())
                if structured:
                    assert (await greedy[-1].option(wire.OPT_STRUCTURED_REPLY))[-1][0] == wire.REP_ACK
                assert await greedy[-1].go()
                for _ in range(40):
                    greedy[-1].start(wire.CMD_READ, 0, length)
            calls = -1
            while calls != len(device.calls):
                calls = len(device.calls)
                for _ in range(200):
                    await asyncio.sleep(0)
            assert (
                16 * LONG // 2
                < held(server)
                <= 16 * (LONG + 256 * OVERHEAD) + sum(one._share.borrowed for one in server._connections)
            )
            for peer in greedy:
                peer.writer.transport.abort()
            await until(lambda: server.connections == 0)

    run(test())


def test_what_waits_for_the_device_is_bounded_too(path: str) -> None:
    async def test() -> None:
        device = Watched(CONTENT)
        async with serving(path, device) as server:
            peers = [await NbdPeer.connect(path) for _ in range(6)]
            device.shut()
            for peer in peers:
                for _ in range(6):
                    peer.start(wire.CMD_WRITE, 0, data=CONTENT[: 8 * LONG])
            calls = -1
            while calls != len(device.calls):  # as many as there is room for
                calls = len(device.calls)
                for _ in range(200):
                    await asyncio.sleep(0)
            assert 20 * LONG < held(server) <= POOL + 6 * 2 * LONG
            assert all(one.requests_in_flight for one in server._connections), "nobody is left out"
            device.gate.set()
            for peer in peers:
                assert not any(reply.error for reply in (await peer.replies(6)).values())
            assert held(server) == 0 and server._memory.free == POOL
            await leave(peers)

    run(test())


def test_failures_are_told_by_the_command_of_the_client(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        device = Failing(CONTENT)
        device.bad = 0
        async with serving(path, device):
            peer = await NbdPeer.connect(path)
            assert (await peer.ask(wire.CMD_READ, 0, 2 * LONG)).error == wire.NBD_EIO
            assert f"NBD command {wire.CMD_READ} of client process" in caplog.text
            await peer.leave()

    with caplog.at_level(logging.WARNING):
        run(test())
