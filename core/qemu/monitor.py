"""The QMP monitor of a running QEMU, or of a qemu-storage-daemon, on a Unix socket.

``qemu.qmp``, QEMU's own client, speaks the protocol. What a QEMU can do is asked of query-qmp-schema, never of its
version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from pybackup.core.errors import BusyError, SourceError
from pybackup.core.tasks import uninterrupted

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

GREETING_SECONDS = 10.0
"""How long a monitor may take to greet: it does so at once, unless it serves another client."""
COMMAND_SECONDS = 30.0
"""How long a command may take; each that we use is answered at once unless QEMU hangs."""
RETRY_SECONDS = 0.1
TRIES = 10
"""How often to connect where something else than the answer to the first command comes."""


class RefusedError(SourceError):
    """QEMU refuses a command; ``reason`` is what it says."""

    def __init__(self, where: str, command: str, reason: str) -> None:
        super().__init__(f"QEMU at {where} refuses {command}: {reason}")
        self.reason = reason


class MonitorLostError(SourceError):
    """The connection to the monitor has ended, so nothing more can be known or done."""


class Monitor:
    """A monitor that we are connected to. Made by connect().

    Fixed: the socket's path, the ids of the user and group that listen there, the commands that there are, and their
    arguments. Changing: whether it is still there.
    """

    def __init__(self, path: str, client: QMPClient, sock: socket.socket, user: tuple[int, int]) -> None:
        self.path, self.user, self._client, self._sock = path, user, client, sock
        self._gave_up = False
        self._arguments: dict[str, frozenset[str]] = {}

    @classmethod
    async def connect(cls, path: str, greeting_seconds: float = GREETING_SECONDS) -> Monitor:
        """Connect to the monitor at ``path`` (SourceError, BusyError)."""
        from qemu.qmp import ConnectError

        log = logging.getLogger("qemu.qmp")
        log.setLevel(logging.CRITICAL + 1)  # what goes wrong is told by errors
        try:
            async with asyncio.timeout(greeting_seconds):
                client, sock = await _negotiated(path)
                _, *user = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except TimeoutError:
            raise BusyError(
                f"the QMP monitor at {path} does not greet: another client is connected to it, or it is no QMP monitor;"
                " a monitor serves one client at a time, so give the machine a second one (-qmp"
                " unix:PATH,server=on,wait=off)"
            ) from None
        except ConnectError as error:
            if isinstance(error.exc, (EOFError, OSError)):
                raise SourceError(f"what listens at {path} ended the connection: it is no QMP monitor") from None
            raise SourceError(f"what listens at {path} is no QMP monitor") from None
        monitor = cls(path, client, sock, (user[0], user[1]))
        try:
            monitor._arguments = arguments_in(await monitor.execute("query-qmp-schema"))
        except BaseException:
            await monitor.close()
            raise
        return monitor

    def knows(self, command: str, argument: str | None = None) -> bool:
        """Whether there is such a command, with such an argument."""
        arguments = self._arguments.get(command)
        return arguments is not None and (argument is None or argument in arguments)

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Execute a command; its answer (RefusedError, MonitorLostError).

        What was sent will be done. So a task that is cancelled meanwhile gets the answer first: a refusal is raised
        instead of the cancellation, for then there is nothing to undo.
        """
        return await uninterrupted(self._execute(command, arguments))

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None) -> Any:
        from qemu.qmp import ExecuteError, QMPError

        if self._gave_up:
            raise self._lost()
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise RefusedError(self.path, command, str(error)) from None
        except TimeoutError:
            self._gave_up = True
            raise MonitorLostError(
                f"QEMU at {self.path} does not answer {command} within {COMMAND_SECONDS:.0f} s"
            ) from None
        except (QMPError, OSError, EOFError):
            raise self._lost() from None

    def _lost(self) -> MonitorLostError:
        return MonitorLostError(f"QEMU at {self.path} has gone: it ended, or closed the connection to its monitor")

    def fileno(self) -> int:
        """The descriptor of the connection."""
        return self._sock.fileno()

    def send_descriptor(self, fd: int) -> None:
        """Send a descriptor along, for an add-fd or getfd that follows (MonitorLostError)."""
        from qemu.qmp import QMPError

        try:
            self._client.send_fd_scm(fd)
        except (OSError, QMPError):
            raise self._lost() from None

    async def events(self) -> AsyncIterator[Mapping[str, Any]]:
        """Every event since connect(), as it comes; never ends by itself."""
        async for event in self._client.events:
            yield event

    async def wait_lost(self) -> MonitorLostError:
        """Return when the connection has ended."""
        from qemu.qmp import Runstate

        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        return self._lost()

    async def close(self) -> None:
        """Take leave; never fails."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GREETING_SECONDS):
                await self._client.disconnect()


async def _negotiated(path: str) -> tuple[QMPClient, socket.socket]:
    """A client that is connected, over a socket (ConnectError, SourceError).

    QEMU sends an event of that instant before it answers the first command, and the client takes it for the answer.
    """
    from qemu.qmp import ConnectError
    from qemu.qmp.qmp_client import NegotiationError

    for again in range(TRIES, 0, -1):
        client = _quiet_client()
        sock = await _open(path)
        try:
            await client.connect(sock)
            break
        except ConnectError as error:
            if again == 1 or not isinstance(error.exc, NegotiationError):
                raise
    return client, sock


def _quiet_client() -> QMPClient:
    """A client that does not write each message out for a log that nobody reads.

    That took half of the processor time of a night in which little had changed.
    """
    from qemu.qmp import Message, QMPClient

    class QuietClient(QMPClient):
        def _cb_outbound(self, msg: Message) -> Message:
            return msg

        def _cb_inbound(self, msg: Message) -> Message:
            return msg

    return QuietClient()


async def _open(path: str) -> socket.socket:
    """A socket that is connected (SourceError); waits where others wait already."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:
                # The queue of those who want to connect is full, and a Unix socket tells nobody when it is not.
                await asyncio.sleep(RETRY_SECONDS)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            hint = _hint(path) if isinstance(error, ConnectionRefusedError) else ""
            raise SourceError(f"cannot connect to the QMP monitor at {path}: {error.strerror or error}{hint}") from None
        raise


def _hint(path: str) -> str:
    """Why a connection may be refused."""
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return "; it is no socket"
    return "; no QEMU listens there"


def arguments_in(schema: Any) -> dict[str, frozenset[str]]:
    """The names of every command's arguments."""
    try:
        objects = {
            entry["name"]: frozenset(member["name"] for member in entry["members"])
            for entry in schema
            if entry["meta-type"] == "object"
        }
        commands = [entry for entry in schema if entry["meta-type"] == "command"]
        return {entry["name"]: objects.get(entry["arg-type"], frozenset()) for entry in commands}
    except (KeyError, TypeError):
        return {}
