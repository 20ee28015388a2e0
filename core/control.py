"""The control socket of a running server: newline-delimited JSON, both ways.

A request is one object with a ``command``; each answer is one object with ``ok``. A client may send an open descriptor
with a ``backup`` request: then the archive goes there, objects with an ``event`` tell the progress, the answer comes
when all is over, and the backup ends with the client's connection. Without a descriptor the server itself writes the
file ``archive``; the answer comes when the disks are frozen, and the backup goes on without the client.
"""

from __future__ import annotations

import array
import asyncio
import base64
import binascii
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from pybackup.formats.archive import DEFAULT_FRAME_SIZE, DEFAULT_LEVEL, MAX_FRAME_SIZE, MIN_FRAME_SIZE

from .backup import BackupJob
from .errors import PybackupError, RequestError
from .exports.listeners import UnixListener
from .live_server import BackupRequest, LiveServer, exit_code_of
from .sinks import Sink
from .sinks.descriptor import DescriptorSink
from .sinks.file import FileSink

MAX_LINE = 32 << 20
"""Bytes of a request: 256 configurations of 64 KiB, in base64."""
PROGRESS_PERIOD = 0.25
"""Seconds between two progress events."""


class ControlSocket:
    """Listens at a path of mode 0600 and answers. Fixed: server, listener. Changing: the clients."""

    def __init__(self, path: str, server: LiveServer, extra_status: Callable[[], dict[str, Any]]) -> None:
        self._listener = UnixListener(path, 0o600)
        self._server, self._extra_status = server, extra_status
        self._clients: set[asyncio.Task[None]] = set()
        self._detached: set[asyncio.Task[None]] = set()
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
        await _end(self._clients | self._detached)

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
        client.forget_job()
        asked = _backup_request(request)
        fd = client.take_descriptor()
        if fd is not None:
            return await self._attached_backup(asked, DescriptorSink(fd, "the client's archive"), client)
        archive = request.get("archive")
        if not isinstance(archive, str) or not os.path.isabs(archive):
            raise RequestError("a backup needs an absolute path as its archive, or a descriptor")
        return await self._detached_backup(asked, FileSink(archive, replace=request.get("force") is True))

    async def _attached_backup(self, asked: BackupRequest, sink: Sink, client: _Client) -> dict[str, Any]:
        work = asyncio.create_task(self._server.backup(asked, sink, lambda job: client.begin_progress(job)))
        gone = asyncio.create_task(client.wait_for_more())
        try:
            while not work.done():
                await asyncio.wait({work, gone}, timeout=PROGRESS_PERIOD, return_when=asyncio.FIRST_COMPLETED)
                if gone.done() and not work.done():
                    # Either the client has gone, or it asks for the end: what else could it send now.
                    await self._server.cancel()
                    await asyncio.wait({work})
                await client.send_progress()
            job = await work
        finally:
            await _end({gone, work})
            if not client.has_job:
                # The job never began, so nobody else closes the descriptor.
                await sink.abort()
        return LiveServer.describe(job)

    async def _detached_backup(self, asked: BackupRequest, sink: Sink) -> dict[str, Any]:
        began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        work = asyncio.create_task(self._run_detached(asked, sink, began))
        self._detached.add(work)
        work.add_done_callback(self._detached.discard)
        await began
        return {"started": True}

    async def _run_detached(self, asked: BackupRequest, sink: Sink, began: asyncio.Future[None]) -> None:
        def started(job: BackupJob) -> None:
            frozen = asyncio.create_task(job.frozen.wait())
            frozen.add_done_callback(lambda _: None if began.done() else began.set_result(None))
            watching.append(frozen)

        watching: list[asyncio.Task[Any]] = []
        try:
            await self._server.backup(asked, sink, started)
        except PybackupError as error:
            if not began.done():
                began.set_exception(error)
        finally:
            for task in watching:
                task.cancel()


def _backup_request(request: dict[str, Any]) -> BackupRequest:
    """The options of a backup, checked (RequestError)."""
    compress = request.get("compress", "zstd")
    if compress not in ("zstd", "none"):
        raise RequestError(f"compress is zstd or none, not {compress!r}")
    level = _number(request, "level", DEFAULT_LEVEL)
    frame_size = _number(request, "frame_size", DEFAULT_FRAME_SIZE)
    if not 1 <= level <= 22 or not MIN_FRAME_SIZE <= frame_size <= MAX_FRAME_SIZE:
        raise RequestError("level is 1 to 22, frame_size 64K to 8M")
    created = request.get("created")
    return BackupRequest(
        level=level if compress == "zstd" else None,
        frame_size=frame_size,
        speed=_number(request, "speed", 0),
        uuid=_uuid(request.get("uuid")),
        created=None if created is None else _number(request, "created", 0),
        configs=_configs(request.get("configs", {})),
        skip_unreadable=request.get("skip_unreadable") is True,
    )


def _number(request: dict[str, Any], name: str, default: int) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestError(f"{name} is a whole number of at least 0, not {value!r}")
    return value


def _uuid(value: object) -> bytes | None:
    if value is None:
        return None
    with contextlib.suppress(ValueError, TypeError):
        found = bytes.fromhex(value)  # type: ignore[arg-type]
        if len(found) == 16:
            return found
    raise RequestError("uuid is 32 hexadecimal digits")


def _configs(value: object) -> tuple[tuple[str, bytes], ...]:
    if not isinstance(value, dict):
        raise RequestError("configs is an object: names, and contents in base64")
    try:
        return tuple((str(name), base64.b64decode(content, validate=True)) for name, content in value.items())
    except (binascii.Error, TypeError, ValueError):
        raise RequestError("the contents of configs are base64") from None


class _Client:
    """One connection. Changing: what was received and not used yet; the job whose progress is sent."""

    def __init__(self, sock: socket.socket, control: ControlSocket) -> None:
        self._sock, self._control = sock, control
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._job: BackupJob | None = None
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

    def begin_progress(self, job: BackupJob) -> None:
        """From now on send_progress() tells about this job."""
        self._job = job

    def forget_job(self) -> None:
        """A new backup request begins."""
        self._job = None

    @property
    def has_job(self) -> bool:
        """Whether a backup for this client has begun."""
        return self._job is not None

    async def send_progress(self) -> None:
        """Send a progress event. A client that has gone is noticed elsewhere."""
        if self._job is not None:
            with contextlib.suppress(OSError):
                await self._send({"event": "progress", **LiveServer.describe(self._job)})

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
