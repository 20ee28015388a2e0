"""Clients of a control socket that say nothing, or too little, and those that are not to be kept out by them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.jobs.backup import GuestPolicy
from pybackup.core.live import control
from pybackup.core.live.control import ControlSocket
from pybackup.core.live.server import LiveServer

SILENT = b""
HALF = b'{"command":'
STATUS = b'{"command": "status"}\n'

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[tuple[str, ControlSocket]]:
    path = str(folder / "control.sock")
    disk = CopyBeforeWrite(MemoryDevice(65536))
    server = ControlSocket(path, LiveServer({"d": disk}, policy=GuestPolicy(), tool="t"), dict, asyncio.Event())
    try:
        yield path, server
    finally:
        await server.close()


async def connect(path: str, said: bytes = b"") -> Peer:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(said)
    await writer.drain()
    return reader, writer


async def answer(peer: Peer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await peer[0].readline())
    return found


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - no event tells what is waited for
        await asyncio.sleep(0)


async def leave(peers: list[Peer]) -> None:
    for _, writer in peers:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


@pytest.mark.parametrize("said", [SILENT, HALF, STATUS])
def test_clients_that_say_nothing_give_way(tmp_path: Path, said: bytes) -> None:
    async def test() -> None:
        async with listening(tmp_path) as (path, server):
            silent = [await connect(path, said) for _ in range(control.MAX_CLIENTS)]
            if said == STATUS:
                assert all([(await answer(peer))["ok"] for peer in silent])
            for number in range(5):
                peer = await connect(path, STATUS)
                assert (await answer(peer))["drives"][0]["name"] == "d"
                await leave([peer])
                assert await silent[0][0].read() == b"", "the one that has waited longest"
                await until(lambda: len(server._clients) < control.MAX_CLIENTS)
                if not number:
                    silent.append(await connect(path, said))
                    silent.append(await connect(path, said))
                    assert await silent[1][0].read() == b""
            await leave(silent)

    run(test())


def test_clients_that_take_no_answers_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_CLIENTS", 4)

    async def test() -> None:
        async with listening(tmp_path) as (path, server):
            deaf = [ask_without_end(path) for _ in range(control.MAX_CLIENTS)]
            for number in range(3):
                await until(lambda: len(server._clients) == control.MAX_CLIENTS)
                await until(lambda: all(client.silent_since is not None for client in server._clients.values()))
                peer = await connect(path, STATUS)
                assert (await answer(peer))["ok"], number
                await leave([peer])
                await until(lambda: len(server._clients) < control.MAX_CLIENTS)
                deaf.append(ask_without_end(path))
            for sock in deaf:
                sock.close()

    run(test())


def ask_without_end(path: str) -> socket.socket:
    """A client that asks as much as can be sent, and takes no answer."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(STATUS * 1000)
    return sock


@pytest.mark.parametrize("said", [SILENT, HALF])
def test_a_request_has_to_be_made_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    async def test() -> None:
        async with listening(tmp_path) as (path, _):
            peer = await connect(path, said)
            assert await peer[0].read() == b"", "the server ends the connection"
            known = await connect(path, STATUS)
            assert (await answer(known))["ok"]
            other = await connect(path)
            assert await other[0].read() == b""
            known[1].write(STATUS)
            assert (await answer(known))["ok"], "one that has asked may be silent for longer"
            known[1].write(HALF)
            assert await known[0].read() == b""
            await leave([peer, known, other])

    monkeypatch.setattr(control, "PATIENCE", 0.2)
    run(test())


def test_an_answer_has_to_be_taken_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with listening(tmp_path) as (path, server):
            reader, writer = await asyncio.open_unix_connection(path, limit=1)
            for _ in range(20_000):
                writer.write(STATUS)
            await until(lambda: bool(server._clients))
            await until(lambda: not server._clients)
            writer.transport.abort()
            del reader

    monkeypatch.setattr(control, "PATIENCE", 0.2)
    run(test())
