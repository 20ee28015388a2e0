"""Going on where another process has died in the middle of a conversation."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pybackup.core.qemu.monitor import MonitorLostError, RefusedError
from pybackup.core.qemu.monitor_taken_over import MonitorTakenOver

SCHEMA = [
    {"meta-type": "command", "name": "closefd", "arg-type": "0", "ret-type": "1"},
    {"meta-type": "object", "name": "0", "members": [{"name": "fdname", "type": "str"}]},
]


class Half:
    """A QEMU that has still to say the rest of an answer to another process, and tells of events in between."""

    def __init__(self, ending: bool = False) -> None:
        self.asked: list[dict[str, Any]] = []
        self.begin = b""
        self.ending = ending

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'rn": [1, 2]}, "id": "pybackup-guardian-1"}\n{"return": {}, "id": "other"}\n[]\n7\n')
        self.begin = await reader.readexactly(1)
        writer.write(b'{"error": {"class": "GenericError", "desc": "stray byte"}}\n')
        while line := await reader.readline():
            request = json.loads(line)
            self.asked.append(request)
            writer.write(json.dumps({"event": "RESET", "id": None}).encode() + b"\n")
            if request["execute"] == "query-qmp-schema":
                answer: dict[str, Any] = {"return": SCHEMA}
            elif self.ending:
                break
            else:
                answer = {"error": {"class": "GenericError", "desc": "no such fd"}}
            writer.write(json.dumps({**answer, "id": request["id"]}).encode() + b"\n")


def talk(qemu: Half, test: Callable[[MonitorTakenOver], Awaitable[None]]) -> None:
    async def within() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        reader, writer = await asyncio.open_unix_connection(sock=theirs)

        async def speak() -> None:
            await qemu(reader, writer)
            writer.close()

        speaking = asyncio.create_task(speak())
        monitor = await MonitorTakenOver.begin(ours.detach(), "vm.qmp")
        await test(monitor)
        await monitor.close()
        await speaking

    asyncio.run(within())


def test_what_another_had_asked_is_passed_over() -> None:
    qemu = Half()

    async def test(monitor: MonitorTakenOver) -> None:
        assert monitor.knows("closefd", "fdname")
        assert not monitor.knows("closefd", "name") and not monitor.knows("getfd")
        with pytest.raises(RefusedError, match="refuses closefd: no such fd"):
            await monitor.execute("closefd", {"fdname": "x"})

    talk(qemu, test)
    assert qemu.begin == b"\xff", "the parser forgets what was sent in part"
    assert [(one["execute"], one.get("arguments")) for one in qemu.asked] == [
        ("query-qmp-schema", None),
        ("closefd", {"fdname": "x"}),
    ]


def test_a_qemu_that_ends_is_told_as_that() -> None:
    async def test(monitor: MonitorTakenOver) -> None:
        for _ in range(2):
            with pytest.raises(MonitorLostError, match=r"QEMU at vm\.qmp has gone"):
                await monitor.execute("query-jobs")

    talk(Half(ending=True), test)
