"""The other end of a control socket: asks a running server, and runs a backup there as if it were a job here."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from .errors import BusyError, ExitCode, PybackupError, RequestError, SourceError
from .job import DriveProgress, Job
from .sinks.file import FileSink
from .sinks.stream import StreamSink
from .unreadable import LostRange

_MAX_LINE = 64 << 20


class RemoteError(PybackupError):
    """A failure that the server reported, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def connect(path: str) -> socket.socket:
    """Connect to a control socket (SourceError)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise SourceError(f"cannot reach a server at {path}: {error.strerror}") from error
    return sock


def ask(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Send one request and return the answer (RemoteError where it says no, SourceError where there is none)."""
    with connect(path) as sock:
        try:
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                line = lines.readline(_MAX_LINE)
        except OSError as error:
            raise SourceError(f"the server at {path} does not answer: {error.strerror}") from error
    return checked(_parse(line, path))


def _parse(line: bytes, path: str) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise SourceError(f"the server at {path} ended the connection")
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise SourceError(f"what answers at {path} is not a pybackup server")
    return message


def checked(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, or the failure that it reports."""
    if answer.get("ok") is True:
        return answer
    code = answer.get("exit_code")
    message = str(answer.get("error", "the server refused"))
    if code == ExitCode.BUSY:
        raise BusyError(message)
    raise RemoteError(message, code if isinstance(code, int) and 0 < code < 256 else 1)


class RemoteBackup(Job):
    """A backup that runs in a server and writes into a descriptor of ours.

    Fixed: the control socket's path, the request, the sink. Changing: progress, as told.
    """

    def __init__(
        self,
        path: str,
        request: dict[str, Any],
        sink: FileSink | StreamSink,
        before_commit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__()
        self.lost: list[LostRange] = []
        self._path, self._request, self._sink = path, request, sink
        self._before_commit = before_commit

    async def _work(self) -> None:
        committed = False
        sock = connect(self._path)
        sock.setblocking(False)
        try:
            await self._sink.begin()
            await self._converse(sock)
            if self._before_commit is not None:
                await self._before_commit()
            await self._sink.commit()
            committed = True
        finally:
            sock.close()
            if not committed:
                await self._sink.abort()

    async def _converse(self, sock: socket.socket) -> None:
        line = json.dumps({"command": "backup", **self._request}).encode() + b"\n"
        # The descriptor goes with the first bytes; they are few, so the socket's buffer takes them at once.
        sent = socket.send_fds(sock, [line[:4096]], [self._sink.fileno()])
        await asyncio.get_running_loop().sock_sendall(sock, line[sent:])
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_MAX_LINE)
        try:
            await self._follow(reader)
        except asyncio.CancelledError:
            # The server cancels when it hears anything from us, and answers when all is over.
            writer.write(b"\n")
            await asyncio.shield(self._end_of(reader))
            raise
        finally:
            writer.close()

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                message = _parse(await reader.readline(), self._path)
            except OSError as error:
                raise SourceError(f"the server at {self._path} ended the connection") from error
            if "event" in message:
                self._note(message)
                continue
            self._note(checked(message))
            return

    @staticmethod
    async def _end_of(reader: asyncio.StreamReader) -> None:
        try:
            while b'"ok"' not in (line := await reader.readline()) and line:
                pass
        except (OSError, ValueError):
            return

    def _note(self, message: dict[str, Any]) -> None:
        """Take over the progress that the server tells."""
        try:
            self.progress.drives = [
                DriveProgress(str(one["name"]), int(one["size"]), int(one["done"]), int(one["zero"]), int(one["read"]))
                for one in message["drives"]
            ]
            self.progress.written = int(message["written"])
            self.lost = [LostRange(one["drive"], one["offset"], one["length"]) for one in message["unreadable"]]
        except (KeyError, TypeError, ValueError):
            raise SourceError(f"what answers at {self._path} is not a pybackup server") from None


def absolute(path: str) -> str:
    """A path that means the same in another process; - is refused."""
    if path == "-":
        raise RequestError("the server cannot write to your standard output; use `pybackup run serve:CONTROL -`")
    return os.path.abspath(path)
