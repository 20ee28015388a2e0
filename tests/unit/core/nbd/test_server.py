from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path

import pytest
from nbd_peer import NbdPeer, leave
from nbd_serving import Watched, run, serving, until

from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.errors import BusyError, RequestError, TargetError
from pybackup.core.nbd.server import NbdServer
from pybackup.formats import nbd_client_wire as client
from pybackup.formats import nbd_wire as wire


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "nbd.sock")


def test_who_chooses_no_export_in_time_is_cut_off(path: str) -> None:
    async def test() -> None:
        async with serving(path, Watched(), handshake_timeout=0.01):
            peer = await NbdPeer.greet(path)
            assert await peer.is_cut_off()
            await peer.leave()

    run(test())


def test_too_many_clients_are_turned_away(path: str) -> None:
    async def test() -> None:
        async with serving(path, Watched(), max_connections=2) as server:
            first, second = await NbdPeer.connect(path), await NbdPeer.connect(path)
            third = NbdPeer(*await asyncio.open_unix_connection(path))
            assert await third.is_cut_off()
            await second.leave()
            await until(lambda: len(server._clients) == 1)
            second = await NbdPeer.connect(path)
            assert (await first.ask(wire.CMD_READ, 0, 1)).error == 0
            await leave([first, second, third])

    run(test())


def test_who_chooses_no_export_gives_way_to_those_who_do(path: str) -> None:
    async def test() -> None:
        async with serving(path, Watched(), max_connections=4) as server:
            silent = [await NbdPeer.greet(path) for _ in range(4)]
            good = [await NbdPeer.connect(path) for _ in range(4)]
            for peer in silent:
                assert await peer.is_cut_off()
            late = [NbdPeer(*await asyncio.open_unix_connection(path)) for _ in range(3)]
            for peer in late:
                assert await peer.is_cut_off()
            for peer in good:
                assert (await peer.ask(wire.CMD_READ, 0, 1)).error == 0
            assert server.connections == 4
            await leave([*silent, *good, *late])

    run(test())


# -- exports --


def test_exports_have_names_and_are_counted(path: str) -> None:
    async def test() -> None:
        exports = {"a": MemoryDevice(b"a"), "b": MemoryDevice(b"b")}
        async with serving(path, exports) as server:
            peers = [await NbdPeer.connect(path, name) for name in "abb"]
            assert [(await peer.ask(wire.CMD_READ, 0, 1)).data for peer in peers] == [b"a", b"b", b"b"]
            assert server.connections_by_export() == {"a": 1, "b": 2}
            assert server.connections == 3
            undecided = await NbdPeer.greet(path)
            assert await undecided.go("") is None
            assert await undecided.go("c") is None
            info = await undecided.go("b")
            assert info is not None
            assert info.size == 1
            await leave([*peers, undecided])
            await until(lambda: server.connections == 0)

    run(test())


def test_abort_and_disc_end_in_peace(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device) as server:
            peer = await NbdPeer.greet(path)
            assert [kind for kind, _ in await peer.option(wire.OPT_ABORT)] == [wire.REP_ACK]
            assert await peer.is_cut_off()
            going = await NbdPeer.connect(path)
            device.shut()
            cookie = going.start(wire.CMD_WRITE, 0, data=b"last")
            going.start(wire.CMD_DISC)
            await until(lambda: bool(device.calls))
            assert server.connections == 1
            device.gate.set()
            assert (await going.reply()).cookie == cookie
            assert await going.is_cut_off()
            await leave([peer, going])

    run(test())


def test_requests_may_come_with_the_last_option(path: str) -> None:
    async def test() -> None:
        async with serving(path, MemoryDevice(b"hurry")):
            peer = await NbdPeer.greet(path)
            peer.writer.write(client.encode_go(""))
            peer.start(wire.CMD_READ, 0, 5)
            await peer.option_replies()
            assert (await peer.reply()).data == b"hurry"
            await peer.leave()

    run(test())


def test_names_that_cannot_be_are_refused() -> None:
    for name in ("x" * 4097, "a\0b", "line\nbreak"):
        with pytest.raises(RequestError, match="cannot be named"):
            NbdServer({name: MemoryDevice(1)})


# -- listening and closing --


def test_the_socket_is_private_and_goes_with_the_server(path: str) -> None:
    async def test() -> None:
        server = NbdServer({"": MemoryDevice(1)})
        await server.start_unix(path)
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        await server.close()
        assert not Path(path).exists()
        await server.close()

    run(test())


def test_somebody_elses_socket_is_left_alone(path: str) -> None:
    async def test() -> None:
        server, other = NbdServer({"": MemoryDevice(1)}), NbdServer({"": MemoryDevice(1)})
        await server.start_unix(path)
        with pytest.raises(BusyError, match="another server listens"):
            await other.start_unix(path)
        Path(path).rename(path + ".old")
        await other.start_unix(path, mode=0o660)
        await server.close()
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o660
        await other.close()
        assert not Path(path).exists()

    run(test())


def test_a_dead_servers_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

    async def test() -> None:
        async with serving(path, MemoryDevice(b"x")):
            peer = await NbdPeer.connect(path)
            await peer.leave()

    run(test())


def test_paths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")

    async def test() -> None:
        server = NbdServer({"": MemoryDevice(1)})
        with pytest.raises(TargetError, match="is not a socket"):
            await server.start_unix(str(tmp_path / "file"))
        with pytest.raises(RequestError, match="too long"):
            await server.start_unix(str(tmp_path / ("x" * 200)))
        with pytest.raises(TargetError, match="No such file"):
            await server.start_unix(str(tmp_path / "none" / "socket"))
        with pytest.raises(TargetError, match="cannot listen on"):
            await server.start_tcp("host.invalid", 1)
        await server.close()

    run(test())
    assert (tmp_path / "file").read_text() == "precious"


def test_tcp_and_given_sockets(path: str) -> None:
    async def test() -> None:
        server = NbdServer({"": MemoryDevice(b"tcp")})
        addresses = await server.start_tcp("localhost", 0)
        assert len({port for _, port in addresses}) == 1
        given = socket.socket(socket.AF_UNIX)
        given.bind(path)
        given.listen()
        server.start_socket(given)
        peers = [await NbdPeer.greet_tcp(host, port) for host, port in addresses]
        for peer in peers:
            assert await peer.go()
        peers.append(await NbdPeer.connect(path))
        for peer in peers:
            assert (await peer.ask(wire.CMD_READ, 0, 3)).data == b"tcp"
        await leave(peers)
        await server.close()
        assert Path(path).exists()

    run(test())


def test_close_answers_what_is_in_flight(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device) as server:
            peer, undecided, idle = await NbdPeer.connect(path), await NbdPeer.greet(path), await NbdPeer.connect(path)
            device.shut()
            peer.start(wire.CMD_WRITE, 0, data=b"x" * 70_000)
            await until(lambda: bool(device.calls))
            closing = asyncio.create_task(server.close())
            assert await undecided.is_cut_off()
            assert await idle.is_cut_off()
            assert not closing.done()
            device.gate.set()
            assert (await peer.reply()).error == 0
            assert await peer.is_cut_off()
            await closing
            assert server.connections == 0
            await leave([peer, undecided, idle])
        assert device.memory.contents()[:70_000] == b"x" * 70_000

    run(test())


def test_close_does_not_wait_for_a_slow_reader(path: str) -> None:
    async def test() -> None:
        device = Watched(8 << 20)
        async with serving(path, device) as server:
            peer = await NbdPeer.connect(path)
            for _ in range(4):
                peer.start(wire.CMD_READ, 0, 8 << 20)
            await until(lambda: device.bytes_read > 0)
            await server.close(grace=0)
            assert await peer.is_cut_off()
            await peer.leave()

    run(test())


def test_a_cancelled_server_leaves_no_request_behind(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device) as server:
            peer = await NbdPeer.connect(path)
            device.shut()
            peer.start(wire.CMD_READ, 0, 1)
            await until(lambda: server.requests_in_flight == 1)
            for task in list(server._clients):
                task.cancel()
            await until(lambda: server.connections == 0)
            assert await peer.is_cut_off()
            await peer.leave()

    run(test())
