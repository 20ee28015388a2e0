"""The control socket of a running server: newline-delimited JSON, both ways.

A request is one object with a ``command``; each answer is one object with ``ok``. With a ``backup`` request the client
sends one end of a socket pair; the clusters go there (see formats/cluster_wire.py), and the client writes the archive.
The answer comes when all is over; a client that goes, or says anything before that, ends the backup.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pybackup.core.archive.identity import DIGEST_SIZE, from_hex
from pybackup.core.errors import CancelledError, PybackupError, RequestError, SourceError
from pybackup.core.system.listeners import UnixListener
from pybackup.core.tasks import end, end_within

from .archive_records import Base
from .cluster_sender import ClusterSender
from .server import BackupRequest, LiveServer, exit_code_of

MAX_LINE = 64 << 10
"""Bytes of a request."""
MAX_CLIENTS = 64
"""Clients at once."""
MAX_NUMBER = 1 << 62
"""More than any speed; what comes from outside must not overflow."""
MAX_DESCRIPTORS = 4
"""What the kernel may hand over at once; a client sends one, and more are closed."""
GRACE = 5.0
"""Seconds that close() gives clients to take their last answer."""
PATIENCE = 30.0
"""Seconds for a client to make its first request, to end one that it has begun, and to take an answer."""

_log = logging.getLogger(__name__)


class ControlSocket:
    """Listens at a path of mode 0600 and answers. Fixed: server, listener. Changing: the clients, and the end."""

    def __init__(
        self, path: str, server: LiveServer, extra_status: Callable[[], dict[str, Any]], quit_asked: asyncio.Event
    ) -> None:
        """``quit_asked``: is set when a client wants the server to end."""
        self._listener = UnixListener(path, 0o600)
        self._server, self._extra_status, self._quit_asked = server, extra_status, quit_asked
        self._clients: dict[asyncio.Task[None], _Client] = {}
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener.socket)
            except OSError:
                await asyncio.sleep(1.0)
                continue
            if not self._has_place():
                sock.close()
                continue
            client = _Client(sock, self)
            task = asyncio.create_task(client.serve())
            self._clients[task] = client
            task.add_done_callback(self._clients.pop)

    def _has_place(self) -> bool:
        """Whether one more client may come; who has been waited for longest gives way to it."""
        if len(self._clients) < MAX_CLIENTS:
            return True
        silent = [client for client in self._clients.values() if client.silent_since is not None]
        if silent:
            min(silent, key=lambda client: client.silent_since or 0.0).give_way()
        return bool(silent)

    async def close(self) -> None:
        """Cancel a backup that runs, tell who asked for it, and let go of all clients."""
        await end([self._accepting])
        self._listener.close()
        await self._server.cancel(SourceError("the server was stopped"))
        for client in self._clients.values():
            client.stop()
        await end_within(self._clients, GRACE)

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

    def failure(self, error: Exception) -> dict[str, Any]:
        """The answer that says so."""
        return {"ok": False, "error": self._server.in_words(error), "exit_code": exit_code_of(error)}

    async def _status(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        return {**self._server.status(), **self._extra_status()}

    async def _speed(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self._server.running().set_speed(_number(request, "speed", None))
        return {}

    async def _pause(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self._server.running().pause()
        return {}

    async def _resume(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self._server.running().resume()
        return {}

    async def _cancel(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self._server.running()
        await self._server.cancel(CancelledError("the backup was cancelled by `pybackup ctl`", signal_number=0))
        return {}

    async def _quit(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        self._quit_asked.set()
        return {}

    async def _backup(self, request: dict[str, Any], client: _Client) -> dict[str, Any]:
        asked = _backup_request(request)
        fd = client.take_descriptor()
        if fd is None:
            raise RequestError(
                "a backup request comes with a socket for the clusters: use `pybackup run serve:CONTROL`"
            )
        sender = ClusterSender(_stream_socket(fd), takes_identity=asked.uuid is not None)
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
                await self._server.cancel(sender.reason())
            return self._server.describe(await work)
        finally:
            await end([gone, work])


def _backup_request(request: dict[str, Any]) -> BackupRequest:
    """The options of a backup, checked (RequestError)."""
    return BackupRequest(
        speed=_number(request, "speed", 0),
        skip_unreadable=request.get("skip_unreadable") is True,
        uuid=None if request.get("uuid") is None else _bytes(request["uuid"]),
        base=None if request.get("base") is None else _base(request["base"]),
    )


def _base(told: Any) -> Base:
    if not isinstance(told, dict) or not isinstance(told.get("digests"), list):
        raise RequestError("base is an object with the uuid of an archive, and digests by which it is known")
    return Base(_bytes(told.get("uuid")), frozenset(map(_bytes, told["digests"])))


def _bytes(told: Any) -> bytes:
    found = from_hex(told, DIGEST_SIZE)
    if found is None:
        raise RequestError(f"uuids and digests are 32 hexadecimal digits, not {str(told)[:64]}")
    return found


def _number(request: dict[str, Any], name: str, default: int | None) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise RequestError(f"{name} is a whole number of at least 0 and at most 2^62, not {str(value)[:64]}")
    return value


def _stream_socket(fd: int) -> socket.socket:
    """The stream socket that ``fd`` is; any other descriptor is closed (RequestError)."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
    else:
        if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
            return sock
        sock.close()
    raise RequestError("the descriptor that comes with a backup request is one end of a Unix stream socket pair")


class _Client:
    """One connection.

    Changing: what was received and not used yet, one descriptor included, since when (seconds, the loop's) it is waited
    for, to ask or to take an answer, and the end.
    """

    def __init__(self, sock: socket.socket, control: ControlSocket) -> None:
        self._sock, self._control = sock, control
        self._received = bytearray()
        self._descriptor: int | None = None
        self._stopped = self._has_asked = False
        self.silent_since: float | None = None
        sock.setblocking(False)

    async def serve(self) -> None:
        """Answer requests until the client goes."""
        try:
            while not self._stopped and (line := await self._read_line()) is not None:
                await self._send(await self._answer(line))
        except OSError:
            return
        finally:
            if (fd := self.take_descriptor()) is not None:
                os.close(fd)
            self._sock.close()

    def stop(self) -> None:
        """Take no more requests: serve() returns when the last one is answered."""
        self._stopped = True
        self.silent_since = None
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def give_way(self) -> None:
        """Make room for another client: what this one does not take is not sent any more."""
        self.stop()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError
        except (ValueError, RecursionError):
            return self._control.failure(RequestError("a request is one JSON object on a line"))
        try:
            return {"ok": True, **await self._control.answer(request, self)}
        except PybackupError as error:
            return self._control.failure(error)
        except Exception as error:
            _log.error("the request %s failed by a bug", line[:80], exc_info=error)
            return self._control.failure(error)

    async def _read_line(self) -> bytes | None:
        """The next request; None when the client has gone, or does not end what it has begun.

        One that has asked before may be silent for as long as its place is not needed.
        """
        loop = asyncio.get_running_loop()
        self.silent_since = loop.time()
        try:
            async with asyncio.timeout(None if self._has_asked and not self._received else PATIENCE) as limit:
                while (end := self._received.find(b"\n")) < 0:
                    if len(self._received) > MAX_LINE or not await self._receive():
                        return None
                    if limit.when() is None:
                        limit.reschedule(loop.time() + PATIENCE)
        except TimeoutError:
            return None
        finally:
            self.silent_since = None
        self._has_asked = True
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
                space = socket.CMSG_LEN(MAX_DESCRIPTORS * size)
                content, ancillary, _, _ = self._sock.recvmsg(65536, space, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await self._readable()
                continue
            except OSError:
                return False
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(data[: len(data) - len(data) % size])
                    self._keep_first(numbers)
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

    def _keep_first(self, numbers: Iterable[int]) -> None:
        for fd in numbers:
            if self._descriptor is None:
                self._descriptor = fd
            else:
                os.close(fd)

    def take_descriptor(self) -> int | None:
        """The descriptor that the client sent; it belongs to the caller now."""
        fd, self._descriptor = self._descriptor, None
        return fd

    async def _send(self, message: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        self.silent_since = loop.time()  # nobody sees it if the socket takes all at once
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_sendall(self._sock, json.dumps(message).encode() + b"\n")
        finally:
            self.silent_since = None
