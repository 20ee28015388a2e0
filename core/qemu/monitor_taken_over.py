"""A connection to a QMP monitor that another process has begun, and died.

What it has sent will be done, and answered, before anything that we ask; it may have died in the middle of reading an
answer. So all that comes is passed over up to the answer to our own first command.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from itertools import count
from typing import Any

from .monitor import COMMAND_SECONDS, MonitorLostError, RefusedError, arguments_in

LONGEST_ANSWER = 64 << 20
"""Bytes; the schema, the longest, has 200,000."""
_RESTART = b"\xff"
"""Whatever was begun, and not ended, QEMU's parser gives it up at this byte."""


class MonitorTakenOver:
    """Made by begin(). Fixed: the streams, and what the monitor knows. Changing: the number of the next command."""

    def __init__(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.path = path
        self._reader, self._writer = reader, writer
        self._numbers = count(1)
        self._arguments: dict[str, frozenset[str]] = {}

    @classmethod
    async def begin(cls, fd: int, path: str) -> MonitorTakenOver:
        """Take the connection over with its descriptor, which is then ours (MonitorLostError)."""
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd), limit=LONGEST_ANSWER)
        monitor = cls(path, reader, writer)
        writer.write(_RESTART)
        monitor._arguments = arguments_in(await monitor.execute("query-qmp-schema"))
        return monitor

    def knows(self, command: str, argument: str | None = None) -> bool:
        """Whether there is such a command, with such an argument."""
        arguments = self._arguments.get(command)
        return arguments is not None and (argument is None or argument in arguments)

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Execute a command; its answer (RefusedError, MonitorLostError)."""
        identity = f"pybackup-guardian-{next(self._numbers)}"
        request: dict[str, Any] = {"execute": command, "id": identity}
        if arguments is not None:
            request["arguments"] = arguments
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                self._writer.write(json.dumps(request).encode() + b"\n")
                await self._writer.drain()
                answer = await self._answer(identity)
        except (OSError, ValueError):
            raise MonitorLostError(f"QEMU at {self.path} has gone") from None
        if "error" in answer:
            raise RefusedError(self.path, command, str(answer["error"].get("desc")))
        return answer["return"]

    async def _answer(self, identity: str) -> Any:
        while line := await self._reader.readline():
            with contextlib.suppress(ValueError):  # the rest of a line whose beginning the other process has read
                answer = json.loads(line)
                if isinstance(answer, dict) and answer.get("id") == identity:
                    return answer
        raise ConnectionResetError

    async def close(self) -> None:
        """Leave the monitor to others."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
