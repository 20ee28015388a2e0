"""What listens at a monitor's socket may be anything: the errors say what it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pybackup.core.errors import BusyError, PybackupError, SourceError
from pybackup.core.qemu.monitor import Monitor, MonitorLostError, RefusedError
from pybackup.core.qemu.running import RunningQemu

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 9}, "package": ""}, "capabilities": []}}
SCHEMA = [
    {"meta-type": "command", "name": "query-block", "arg-type": "0", "ret-type": "1"},
    {"meta-type": "command", "name": "blockdev-del", "arg-type": "2", "ret-type": "0"},
    {"meta-type": "object", "name": "0", "members": []},
    {"meta-type": "object", "name": "2", "members": [{"name": "node-name", "type": "str"}]},
]


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that ends the connection at once."""


async def human(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"QEMU 7.2.0 monitor - type 'help' for more information\r\n(qemu) ")
    await reader.read()


async def qmp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A QMP server that knows its schema, refuses blockdev-del and goes at any other command."""
    writer.write(json.dumps(GREETING).encode() + b"\n")
    answers = {"qmp_capabilities": {}, "query-qmp-schema": SCHEMA}
    # Requests end where their JSON does, and this client waits for each answer.
    while content := await reader.read(65536):
        request = json.loads(content)
        command = request["execute"]
        if command == "blockdev-del":
            answer = {"error": {"class": "GenericError", "desc": "Node is in use"}}
        elif command in answers:
            answer = {"return": answers[command]}
        else:
            return
        identity = {"id": request["id"]} if "id" in request else {}
        writer.write(json.dumps({**answer, **identity}).encode() + b"\n")


def with_server(path: Path, talk: Talk, test: Callable[[], Awaitable[None]]) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    async def within() -> None:
        server = await asyncio.start_unix_server(connected, path)
        try:
            await test()
        finally:
            server.close()

    asyncio.run(within())


@pytest.mark.parametrize(
    ("talk", "failure", "said"),
    [
        (silence, BusyError, "another client is connected to it, or it is no QMP monitor"),
        (hang_up, SourceError, "ended the connection: it is no QMP monitor"),
        (human, SourceError, "is no QMP monitor"),
    ],
)
def test_what_is_no_monitor_is_told(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    talk: Talk,
    failure: type[PybackupError],
    said: str,
) -> None:
    path = tmp_path / "monitor"

    async def test() -> None:
        with pytest.raises(failure, match=said):
            await Monitor.connect(str(path), greeting_seconds=0.3)

    with_server(path, talk, test)
    assert capfd.readouterr() == ("", "")


def test_where_nobody_listens(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 200)
    places = ((tmp_path / "none", "No such file"), (tmp_path, "refused; it is no socket"), (long, "too long"))
    for path, said in places:
        with pytest.raises(SourceError, match=said):
            asyncio.run(Monitor.connect(str(path)))


def test_commands_are_known_refused_and_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "monitor"

    async def test() -> None:
        monitor = await Monitor.connect(str(path))
        assert monitor.knows("query-block") and not monitor.knows("query-status")
        assert monitor.knows("blockdev-del", "node-name") and not monitor.knows("blockdev-del", "mode")
        with pytest.raises(RefusedError, match="refuses blockdev-del: Node is in use") as refused:
            await monitor.execute("blockdev-del", {"node-name": "x"})
        assert refused.value.reason == "Node is in use"
        lost = asyncio.create_task(monitor.wait_lost())
        with pytest.raises(MonitorLostError, match="has gone"):
            await monitor.execute("quit")
        assert isinstance(await lost, MonitorLostError)
        with pytest.raises(MonitorLostError):
            await monitor.execute("query-block")
        await monitor.close()

    with_server(path, qmp, test)
    assert capfd.readouterr() == ("", "")


def test_a_qemu_that_lacks_commands_is_too_old(tmp_path: Path) -> None:
    path = tmp_path / "monitor"

    async def test() -> None:
        with pytest.raises(SourceError, match="is too old: it does not know block-export-add, "):
            await RunningQemu.connect(str(path))

    with_server(path, qmp, test)


def test_a_cancelled_task_hears_the_answer_first(tmp_path: Path) -> None:
    path = tmp_path / "monitor"

    async def test() -> None:
        monitor = await Monitor.connect(str(path))
        # Refused: there is nothing to undo, and the caller learns so.
        task = asyncio.create_task(monitor.execute("blockdev-del"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(RefusedError):
            await task
        # Done: the cancellation follows.
        task = asyncio.create_task(monitor.execute("query-qmp-schema"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await monitor.close()

    with_server(path, qmp, test)


def test_an_event_that_comes_before_the_first_answer_is_borne(tmp_path: Path) -> None:
    connections = []

    async def eventful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        if len(connections) == 3:
            await qmp(reader, writer)
            return
        event = {"event": "RESUME", "data": {}, "timestamp": {"seconds": 1, "microseconds": 0}}
        writer.write(json.dumps(GREETING).encode() + b"\n")
        await reader.read(65536)
        writer.write(json.dumps(event).encode() + b"\n" + json.dumps({"return": {}}).encode() + b"\n")
        await reader.read()

    async def test() -> None:
        monitor = await Monitor.connect(str(tmp_path / "qmp.sock"))
        assert monitor.knows("query-block") and len(connections) == 3
        await monitor.close()

    with_server(tmp_path / "qmp.sock", eventful, test)
