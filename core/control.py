"""The control socket of a running server: newline-delimited JSON, both ways.

A request is one object with a ``command``; each answer is one object with ``ok``. With a ``backup`` request the client
sends one end of a socket pair; the clusters go there (see formats/cluster_wire.py), and the client writes the archive.
The answer comes when all is over; a client that goes, or says anything before that, ends the backup.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from .cluster_sender import ClusterSender
from .errors import PybackupError, RequestError
from .exports.listeners import UnixListener
from .live_server import BackupRequest, LiveServer, exit_code_of

MAX_LINE = 64 << 10
"""Bytes of a request."""


class ControlSocket:
    """Listens at a path of mode 0600 and answers. Fixed: server, listener. Changing: the clients."""

    def __init__(self, path: str, server: LiveServer, extra_status: Callable[[], dict[str, Any]]) -> None:
        self._listener = UnixListener(path, 0o600)
        self._server, self._extra_status = server, extra_status
        self._clients: set[asyncio.Task[None]] = set()
        self.quit_asked = asyncio.Event()
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener.socket)
            except OSError:
                await asyncio.sleep(1.0)
                continue
            task = asyncio.create_task(_Client(sock, self).serve())
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def close(self) -> None:
        """Cancel a backup that runs, and let go of all clients."""
        await _end({self._accepting})
        self._listener.close()
        await self._server.cancel()
        await _end(self._clients)

    # -- the commands --

    async def answer(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        """Carry out one request."""
        commands: dict[str, Callable[[dict[str, Any], _Client], Awaitable[dict[str, Any]]]] = {
            "backup": self._backup,
            "status": self._status,
            "speed": self._speed,
            "pause": self._pause,
            "resume": self._resume,
            "cancel": self._cancel,
            "quit": self._quit,
        }
        name = request.get("command")
        if not isinstance(name, str) or name not in commands:
            raise RequestError(f"there is no command {name!r}; there are {', '.join(commands)}")
        return await commands[name](request, client)

    async def _status(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        return {**self._server.status(), **self._extra_status()}

    async def _speed(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self._server.running().set_speed(_number(request, "speed", 0))
        return {}

    async def _pause(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self._server.running().pause()
        return {}

    async def _resume(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self._server.running().resume()
        return {}

    async def _cancel(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self._server.running()
        await self._server.cancel()
        return {}

    async def _quit(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self.quit_asked.set()
        return {}

    async def _backup(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        asked = _backup_request(request)
        fd = client.take_descriptor()
        if fd is None:
            raise RequestError(
                "a backup request comes with a socket for the clusters: use `pybackup run serve:CONTROL`"
            )
        try:
            sender = ClusterSender(socket.socket(fileno=fd))
        except OSError:
            os.close(fd)
            raise RequestError("the descriptor of a backup request is a socket") from None
        try:
            return await self._run_backup(asked, sender, client)
        finally:
            await sender.abort()

    async def _run_backup(self, asked: BackupRequest, sender: ClusterSender, client: _Client) -> dict[str, Any]:
        work = asyncio.create_task(self._server.backup(asked, sender))
        gone = asyncio.create_task(client.wait_for_more())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                # Either the client has gone, or it wants to end: what else could it say now.
                await self._server.cancel(await sender.reason())
            return LiveServer.describe(await work)
        finally:
            await _end({gone, work})


def _backup_request(request: dict[str, Any]) -> BackupRequest:
    """The options of a backup, checked (RequestError)."""
    return BackupRequest(speed=_number(request, "speed", 0), skip_unreadable=request.get("skip_unreadable") is True)


def _number(request: dict[str, Any], name: str, default: int) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestError(f"{name} is a whole number of at least 0, not {value!r}")
    return value


class _Client:
    """One connection. Changing: what was received and not used yet."""

    def __init__(self, sock: socket.socket, control: ControlSocket) -> None:
        self._sock, self._control = sock, control
        self._received = bytearray()
        self._descriptors: list[int] = []
        sock.setblocking(False)

    async def serve(self) -> None:
        """Answer requests until the client goes."""
        try:
            while (line := await self._read_line()) is not None:
                await self._send(await self._answer(line))
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            for fd in self._descriptors:
                os.close(fd)
            self._sock.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError
        except (ValueError, RecursionError):
            return _failure(RequestError("a request is one JSON object on a line"))
        try:
            return {"ok": True, **await self._control.answer(request, self)}
        except PybackupError as error:
            return _failure(error)

    async def _read_line(self) -> bytes | None:
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > MAX_LINE or not await self._receive():
                return None
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    async def wait_for_more(self) -> None:
        """Return when the client has gone, or sent something."""
        if not self._received:
            await self._receive()

    async def _receive(self) -> bool:
        """Take bytes and descriptors; False when the client has gone."""
        while True:
            try:
                size = array.array("i").itemsize
                content, ancillary, _, _ = self._sock.recvmsg(65536, socket.CMSG_LEN(4 * size))
            except BlockingIOError:
                await self._readable()
                continue
            except OSError:
                return False
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(data[: len(data) - len(data) % size])
                    self._descriptors += numbers
            self._received += content
            return bool(content)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._sock, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            loop.remove_reader(self._sock)

    def take_descriptor(self) -> int | None:
        """The first descriptor that the client sent; it belongs to the caller now."""
        if not self._descriptors:
            return None
        fd = self._descriptors.pop(0)
        os.set_inheritable(fd, False)
        return fd

    async def _send(self, message: dict[str, Any]) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, json.dumps(message).encode() + b"\n")


def _failure(error: PybackupError) -> dict[str, Any]:
    return {"ok": False, "error": str(error), "exit_code": exit_code_of(error)}


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()
