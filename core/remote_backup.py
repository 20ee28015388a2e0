"""A backup of a running server's disks: the server freezes and copies, this process makes the archive.

The server sends clusters as they are, so that everything that costs processor time happens here, at a lower priority
than the guests'; and the archive is opened, written and named with the rights of whoever asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from pybackup.formats import cluster_wire as wire
from pybackup.formats.errors import FormatError

from .archive_writer import ArchiveWriter
from .control_client import ask, checked, connect, parse
from .device import CLUSTER_SIZE
from .errors import PybackupError, SourceError
from .intake import Prepared
from .job import DriveProgress, Job
from .trace import Trace
from .unreadable import LostRange

AHEAD = 4
"""Messages whose clusters are scanned ahead of the archive."""


def served_drives(path: str) -> list[tuple[str, int]]:
    """(name, size in bytes) of a server's disks that can be backed up (SourceError, BusyError)."""
    status = ask(path, {"command": "status"})
    try:
        drives = [(str(drive["name"]), int(drive["size"])) for drive in status["drives"]]
    except (KeyError, TypeError, ValueError):
        raise SourceError(f"what answers at {path} is not a pybackup server") from None
    if not drives:
        raise SourceError(f"the server at {path} serves an archive; there is nothing to back up")
    return drives


class RemoteBackup(Job):
    """Receives clusters from a server and writes the archive.

    Fixed: the control socket's path, the request, the writer. Changing: progress, and what is being scanned.
    """

    def __init__(
        self,
        path: str,
        request: dict[str, Any],
        drives: list[tuple[str, int]],
        writer: ArchiveWriter,
        pool: ThreadPoolExecutor,
        *,
        before_commit: Callable[[], Awaitable[None]] | None = None,
        trace: Trace | None = None,
    ) -> None:
        super().__init__(trace=trace)
        self.lost: list[LostRange] = []
        self._path, self._request, self._writer, self._pool = path, request, writer, pool
        self._before_commit = before_commit
        self._by_id = {number: DriveProgress(name, size) for number, (name, size) in enumerate(drives, 1)}
        self.progress.drives = list(self._by_id.values())
        self._ahead: deque[tuple[wire.Message, asyncio.Future[Any]]] = deque()

    async def _work(self) -> None:
        committed = False
        control = connect(self._path)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            await self._writer.start()
            _lower_priority()
            line = json.dumps({"command": "backup", **self._request}).encode() + b"\n"
            socket.send_fds(control, [line], [theirs.fileno()])
            theirs.close()
            about = await self._receive_all(control, ours)
            await self._conclude(about)
            committed = True
            await asyncio.get_running_loop().sock_sendall(ours, wire.ACKNOWLEDGEMENT)
        except Exception as error:
            with contextlib.suppress(OSError):
                ours.send(str(error).encode()[:4096])
            raise
        finally:
            theirs.close()
            ours.close()
            control.close()
            if not committed:
                await self._drop_ahead()
                await self._writer.abort()

    async def _receive_all(self, control: socket.socket, sock: socket.socket) -> dict[str, Any]:
        """Take messages until the end; what the server tells about the source."""
        reader, writer = await asyncio.open_connection(sock=sock.dup(), limit=wire.MAX_PAYLOAD)
        try:
            while True:
                message, content = await self._next_message(reader, control)
                if message.kind == wire.END:
                    await self._write_ahead(0)
                    return self._parse_about(content)
                await self._take(message, content)
        finally:
            writer.close()

    async def _next_message(self, reader: asyncio.StreamReader, control: socket.socket) -> tuple[wire.Message, bytes]:
        try:
            message = wire.decode(await reader.readexactly(wire.MESSAGE.size))
            return message, await reader.readexactly(message.length) if message.length else b""
        except (asyncio.IncompleteReadError, OSError):
            # The stream ended too early: the answer on the control socket says why.
            raise await asyncio.to_thread(self._reason, control) from None
        except FormatError as error:
            raise SourceError(error.what) from None

    def _reason(self, control: socket.socket) -> PybackupError:
        control.setblocking(True)
        try:
            with control.makefile("rb") as lines:
                checked(parse(lines.readline(1 << 20), self._path))
        except OSError:
            return SourceError(f"the server at {self._path} ended the connection")
        except PybackupError as error:
            return error
        return SourceError(f"the server at {self._path} ended the backup too early")

    def _parse_about(self, content: bytes) -> dict[str, Any]:
        try:
            about = json.loads(content)
            self.lost = [LostRange(one["drive"], one["offset"], one["length"]) for one in about["unreadable"]]
        except (ValueError, KeyError, TypeError):
            raise SourceError(f"what answers at {self._path} is not a pybackup server") from None
        return dict(about)

    async def _take(self, message: wire.Message, content: bytes) -> None:
        drive = self._by_id.get(message.drive_id)
        end = (message.first + message.clusters) * CLUSTER_SIZE
        if (
            drive is None
            or end - CLUSTER_SIZE >= drive.size
            or -(-len(content) // CLUSTER_SIZE)
            not in (
                0,
                message.clusters,
            )
        ):
            raise SourceError("the server's stream of clusters is damaged")
        if message.kind == wire.ZEROS:
            await self._write_ahead(0)
            size = min(end, drive.size) - message.first * CLUSTER_SIZE
            drive.done += size
            drive.zero += size
            await self._writer.put_zeros(message.drive_id, message.first, message.clusters)
        else:
            self._ahead.append((message, asyncio.ensure_future(self._writer.prepare([content], self._pool))))
            await self._write_ahead(AHEAD)
        self.progress.written = self._writer.written

    async def _write_ahead(self, keep: int) -> None:
        while len(self._ahead) > keep:
            message, future = self._ahead[0]
            prepared: Prepared = (await future)[0]
            self._ahead.popleft()
            drive = self._by_id[message.drive_id]
            drive.done += len(prepared.content)
            drive.zero += prepared.zero
            await self._writer.take(message.drive_id, message.first, prepared)

    async def _drop_ahead(self) -> None:
        futures = [future for _, future in self._ahead]
        self._ahead.clear()
        for future in futures:
            future.cancel()
        if futures:
            await asyncio.wait(futures)

    async def _conclude(self, about: dict[str, Any]) -> None:
        await self._writer.drain()
        counts = self._writer.counts
        about["drives"] = [
            {
                "id": number,
                "name": drive.name,
                "size": drive.size,
                **(asdict(counts[number]) if number in counts else {}),
            }
            for number, drive in self._by_id.items()
        ]
        await self._writer.finish(about)
        self.progress.written = self._writer.written
        if self._before_commit is not None:
            await self._before_commit()
        await self._writer.commit()


def _lower_priority() -> None:
    """Take what processor time the guests leave."""
    with contextlib.suppress(OSError):
        os.nice(10)
