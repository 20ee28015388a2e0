"""A backup of a running server's disks: the server freezes and copies, this process makes the archive.

The server sends clusters as they are, so that everything that costs processor time happens here, at a lower priority
than the guests'; and the archive is opened, written and named with the rights of whoever asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pybackup.core.archive.intake import Intake, Piece, Prepared
from pybackup.core.archive.seen_clusters import SeenClusters
from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.devices.unreadable import LostRanges
from pybackup.core.errors import SourceError, TargetFullError
from pybackup.core.jobs.changes import BY_DIGEST, BY_SERVER, FULL, DriveWay, ways_told
from pybackup.core.jobs.job import DriveProgress, Job, with_estimate
from pybackup.core.tasks import beside, end
from pybackup.core.trace import Trace
from pybackup.formats import cluster_wire as wire
from pybackup.formats.cluster_index import describe_drive

from .cluster_receiver import ClusterReceiver
from .control_client import ask

NICENESS = 10
TELL_EVERY = 0.25
"""Seconds between two messages of progress."""
AHEAD = 4
"""Messages whose clusters are scanned ahead of the archive."""
DAMAGED = "the server's stream of clusters is damaged"
OTHER_VERSION = "the server is of another version of pybackup"


def served_drives(path: str) -> list[tuple[str, int]]:
    """(name, size in bytes) of a server's disks that can be backed up (SourceError, BusyError)."""
    status = ask(path, {"command": "status"})
    try:
        drives = [(str(drive["name"]), int(drive["size"])) for drive in status["drives"] if not drive.get("archive")]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SourceError(f"what answers at {path} is not a pybackup server") from None
    if not drives:
        raise SourceError(f"the server at {path} serves an archive; there is nothing to back up")
    return drives


class RemoteBackup(Job):
    """Receives clusters from a server and writes the archive.

    Fixed: the control socket's path, the request, the writer. Changing: progress, when it was told last, and what is
    being scanned.
    """

    def __init__(
        self,
        path: str,
        request: dict[str, Any],
        drives: Sequence[tuple[str, int]],
        writer: Intake,
        pool: ThreadPoolExecutor,
        *,
        ways: Mapping[str, DriveWay] | None = None,
        before_commit: Callable[[], Awaitable[None]] | None = None,
        trace: Trace | None = None,
    ) -> None:
        """``ways``: how drives come into a delta, by their names, unless the server knows a better way."""
        super().__init__(trace=trace)
        self.lost = LostRanges()
        self.consistency: dict[str, Any] = {}
        self.ways = {name: DriveWay() for name, _ in drives} | dict(ways or {})
        self._path, self._request, self._writer, self._pool = path, request, writer, pool
        self._before_commit = before_commit
        self._by_id = {number: DriveProgress(name, size) for number, (name, size) in enumerate(drives, 1)}
        self._seen = {number: SeenClusters(-(-drive.size // CLUSTER_SIZE)) for number, drive in self._by_id.items()}
        self.progress.drives = list(self._by_id.values())
        self._ahead: deque[tuple[wire.Message, asyncio.Task[Prepared]]] = deque()
        self._takes_identity = False
        self._told = 0.0

    async def _work(self) -> None:
        try:
            await self._writer.start()
            _lower_priority()
            server = await ClusterReceiver.begin(self._path, self._request)
            try:
                await self._make_archive(server)
                await server.acknowledge(self._writer.digest if self._takes_identity else None)
            except BaseException as error:
                server.give_up(str(self.error or error))
                raise
            finally:
                await server.close()
        except TargetFullError as error:
            self.progress.written = self._writer.written
            raise with_estimate(error, self.progress) from error
        finally:
            if not self._is_decided:
                await self._drop_ahead()
                await self._writer.abort()

    async def _make_archive(self, server: ClusterReceiver) -> None:
        while (received := await server.message())[0].kind != wire.END:
            await self._take(server, *received)
            self._tell(server)
        await self._write_ahead(0)
        about = self._parse_about(received[1])
        async with beside(self._watch(server)):
            await self._finish(about)
        server.tell(self.progress.stored, self.progress.written)
        await self._decide(self._writer.commit)

    def _tell(self, server: ClusterReceiver) -> None:
        """Let the server know, a few times a second, what it tells of this backup."""
        now = self._clock()
        if now - self._told >= TELL_EVERY:
            self._told = now
            server.tell(self.progress.stored, self.progress.written)

    async def _watch(self, server: ClusterReceiver) -> None:
        """A backup that is cancelled on the server's side ends here too, however long reading back may take."""
        self.fail(await server.gone())

    def _parse_about(self, content: bytes) -> dict[str, Any]:
        if any(next(seen.missing(), None) for seen in self._seen.values()):
            raise SourceError(DAMAGED)
        try:
            about = dict(json.loads(content))
            self.lost = LostRanges.from_json(about["unreadable"])
            self._takes_identity = about.pop(wire.TAKES_IDENTITY, False) is True
            self._hear_ways(about.get("ways", ()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceError(f"what answers at {self._path} is not a pybackup server") from None
        self.consistency = dict(about)
        return about

    def _hear_ways(self, ways: Any) -> None:
        """What the server tells of the ways of drives that the parent has too."""
        told = {one["name"]: one for one in ways}
        for name in filter(self._has_parent, self.ways):
            way, why = (told.get(name, {}).get(key) for key in ("way", "why"))
            self.ways[name] = (
                DriveWay(way, why) if way in (BY_DIGEST, BY_SERVER) else DriveWay(BY_DIGEST, OTHER_VERSION)
            )

    def _has_parent(self, name: str) -> bool:
        return self.ways[name].way != FULL

    async def _take(self, server: ClusterReceiver, message: wire.Message, content: bytes) -> None:
        if message.kind == wire.SAMPLE:
            server.answer(differs=await self._writer.differs(self._check_sample(message, content)))
            return
        size = self._check(message)
        if message.kind == wire.UNCHANGED:
            drive = self._by_id[message.drive_id]
            await self._writer.put_unchanged(message.drive_id, message.first, message.clusters)
            drive.done += size
            drive.unchanged += size
        elif message.kind == wire.ZEROS:
            await self._write_ahead(0)
            drive = self._by_id[message.drive_id]
            changed = await self._writer.put_zeros(message.drive_id, message.first, message.clusters)
            drive.done += size
            zero = min(size, changed * CLUSTER_SIZE)
            drive.zero += zero
            drive.unchanged += size - zero
        else:
            piece = Piece(message.drive_id, message.first, content)
            self._ahead.append((message, asyncio.create_task(self._prepare(piece))))
            await self._write_ahead(AHEAD)
        self.progress.written = self._writer.written

    def _check(self, message: wire.Message) -> int:
        """The bytes of disk that a message is about (SourceError for what cannot be)."""
        size = self._size_of(message)
        if not self._seen[message.drive_id].add(message.first, message.clusters):
            raise SourceError(DAMAGED)
        return size

    def _check_sample(self, message: wire.Message, content: bytes) -> Piece:
        """Clusters that the server only asks about (SourceError for what cannot be)."""
        self._size_of(message)
        return Piece(message.drive_id, message.first, content)

    def _size_of(self, message: wire.Message) -> int:
        """The bytes of disk that a message is about, as far as that fits into the drive (SourceError)."""
        drive = self._by_id.get(message.drive_id)
        if drive is None or not message.clusters:
            raise SourceError(DAMAGED)
        end = (message.first + message.clusters) * CLUSTER_SIZE
        size = min(end, drive.size) - message.first * CLUSTER_SIZE
        has_parent = message.kind not in (wire.UNCHANGED, wire.SAMPLE) or self._has_parent(drive.name)
        length = size if message.kind in (wire.DATA, wire.SAMPLE) else 0
        if end >= drive.size + CLUSTER_SIZE or message.length != length or not has_parent:
            raise SourceError(DAMAGED)
        return size

    async def _prepare(self, piece: Piece) -> Prepared:
        return (await self._writer.prepare([piece], self._pool))[0]

    async def _write_ahead(self, keep: int) -> None:
        while len(self._ahead) > keep:
            message, task = self._ahead[0]
            prepared = await task
            self._ahead.popleft()
            drive = self._by_id[message.drive_id]
            drive.done += len(prepared.content)
            drive.read += len(prepared.content)
            drive.zero += prepared.zero
            drive.unchanged += prepared.unchanged
            await self._writer.take(message.drive_id, message.first, prepared)

    async def _drop_ahead(self) -> None:
        tasks = [task for _, task in self._ahead]
        self._ahead.clear()
        await end(tasks)

    async def _finish(self, about: dict[str, Any]) -> None:
        await self._writer.drain()
        counts = self._writer.counts
        about["drives"] = [
            describe_drive(number, drive.name, drive.size, counts) for number, drive in self._by_id.items()
        ]
        await self._writer.finish(about | ways_told(self.ways))
        self.progress.written = self._writer.written
        if self._before_commit is not None:
            await self._before_commit()


def _lower_priority() -> None:
    """Take what processor time the guests leave."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
