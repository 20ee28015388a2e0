"""The merge job: all clusters of a chain of archives, or of one of any origin, into one full archive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from pybackup.core.archive.chain_walk import Surviving
from pybackup.core.archive.writer import ArchiveWriter
from pybackup.core.errors import TargetFullError
from pybackup.core.tasks import ended
from pybackup.core.trace import Trace
from pybackup.formats.archive import CopiedFrame, ZeroRun
from pybackup.formats.clusters import stored_bytes
from pybackup.formats.vma import Header
from pybackup.formats.vma_layout import CLUSTER_SIZE

from .job import DriveProgress, Job, with_estimate
from .walk import bytes_of

MOST_BYTES, MOST_PARTS = 1 << 20, 64
"""Bytes of data, and parts, after which the reading thread hands over what it has."""


class Clusters(Protocol):
    """What is merged: every cluster of every drive once, read in a thread. ArchiveError at damage.

    ``notes``: sentences about it, once it was read.
    """

    header: Header
    stop: Callable[[], None]
    notes: list[str]

    @property
    def consumed(self) -> tuple[int, int] | None:
        """(done, whole) bytes of the archive, where it is one that is read from beginning to end, of known size."""
        ...

    def __iter__(self) -> Iterator[Surviving]:
        """The clusters."""
        ...

    def about(self) -> dict[str, Any]:
        """What the new archive is to tell of itself, once all was read."""
        ...


class MergeJob(Job):
    """Makes one full archive of what it is given.

    Fixed: where the clusters come from, and the writer. Changing: progress, and ``copied``, bytes of frames that were
    written as they were.
    """

    def __init__(
        self,
        clusters: Clusters,
        writer: ArchiveWriter,
        *,
        before_commit: Callable[[], Awaitable[None]] | None = None,
        speed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        trace: Trace | None = None,
    ) -> None:
        super().__init__(speed=speed, clock=clock, trace=trace)
        self.copied = 0
        self._clusters, self._writer, self._before_commit = clusters, writer, before_commit
        self._drives = {drive.drive_id: DriveProgress(drive.name, drive.size) for drive in clusters.header.drives}
        self.progress.drives = list(self._drives.values())

    @property
    def notes(self) -> list[str]:
        """What helps to know of what was read, once it was."""
        return self._clusters.notes

    async def _work(self) -> None:
        try:
            await self._writer.start()
            await self._copy()
            await self._writer.drain()
            await self._writer.finish(self._clusters.about())
            self.progress.written = self._writer.written
            if self._before_commit is not None:
                await self._before_commit()
            await self._decide(self._writer.commit)
        except TargetFullError as error:
            self.progress.written = self._writer.written
            raise with_estimate(error, self.progress) from error
        finally:
            if not self._is_decided:
                await self._writer.abort()

    async def _abandon(self) -> None:
        await self._writer.abort()

    async def _copy(self) -> None:
        loop = asyncio.get_running_loop()
        parts = iter(self._clusters)
        with ThreadPoolExecutor(1, thread_name_prefix="pybackup-archive") as reader:
            upcoming = loop.run_in_executor(reader, _some_of, parts)
            try:
                while some := await upcoming:
                    await self._pace(sum(map(_data_in, some)))
                    upcoming = loop.run_in_executor(reader, _some_of, parts)
                    self.progress.consumed = self._clusters.consumed
                    for part in some:
                        await self._take(part)
                    self.progress.written = self._writer.written
            finally:
                # The thread may wait for a pipe that says no more; it must end before its pool can be closed.
                self._clusters.stop()
                await ended([upcoming])

    async def _take(self, part: Surviving) -> None:
        if isinstance(part, ZeroRun):
            await self._writer.put_zeros(*part)
            self._count(part.drive_id, part.first, part.clusters, 0)
        elif isinstance(part, CopiedFrame):
            await self._writer.put_frame(part)
            self.copied += part.frame.size
            for slot in part.slots:
                self._count(*slot)
        else:
            await self._writer.put(*part)
            first = part.first
            for run in part.runs:
                self._count(part.drive_id, first, run.clusters, run.mask)
                first += run.clusters

    def _count(self, drive_id: int, first: int, clusters: int, mask: int) -> None:
        progress = self._drives[drive_id]
        size = bytes_of(progress.size, first, clusters)
        stored = stored_bytes(mask, size)
        progress.done += size
        progress.read += stored
        progress.zero += size - stored


def _data_in(part: Surviving) -> int:
    """Bytes of data, decompressed."""
    if isinstance(part, ZeroRun):
        return 0
    if isinstance(part, CopiedFrame):
        return part.frame.decompressed
    return sum(run.clusters for run in part.runs if run.mask) * CLUSTER_SIZE


def _some_of(parts: Iterator[Surviving]) -> list[Surviving]:
    """The next parts, at least one, none at the end: of data about a mebibyte, for the way to a thread costs time."""
    some: list[Surviving] = []
    size = 0
    for part in parts:
        some.append(part)
        size += _data_in(part)
        if size >= MOST_BYTES or len(some) >= MOST_PARTS:
            break
    return some
