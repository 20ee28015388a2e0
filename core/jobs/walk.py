"""The jobs that read an archive in its order: restore, compare, verify.

The archive is read and checked in a thread of its own, an extent or some small ones at a time; what is done with the
extents happens in the event loop, where progress, pause, speed and cancel are those of every job.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from pybackup.core.archive.checked_extent import CheckedExtent
from pybackup.core.archive.damage import Damage
from pybackup.core.tasks import ended
from pybackup.core.trace import Trace
from pybackup.formats.clusters import expand, stored_bytes, stored_ranges
from pybackup.formats.vma import DriveInfo, Header
from pybackup.formats.vma_layout import CLUSTER_SIZE, FULL_MASK
from pybackup.formats.vma_stream import DecodedExtent

from .job import DriveProgress, Job

MOST_BYTES = 1 << 20
"""Bytes of data after which the reading thread hands over what it has; a full extent has 3.6 MiB."""
MOST_EXTENTS = 64
"""Extents after which it does: 15 million clusters that are zero are 290,000 extents without data."""


class Extents(Protocol):
    """An archive that gives its extents: all of them, or those that the index names."""

    header: Header
    damage: list[Damage]
    stop: Callable[[], None]

    @property
    def stored(self) -> Mapping[str, int]:
        """Bytes that the archive says it holds of drives, by their names: a hint, and no more."""
        ...

    @property
    def consumed(self) -> tuple[int, int] | None:
        """(done, whole) bytes of the archive, where it is read from beginning to end and its size is known."""
        ...

    def extents(self, drive_ids: Collection[int]) -> Iterator[CheckedExtent]:
        """All extents of these drives, and maybe others; ArchiveError at damage that is not to be put up with."""
        ...


class ArchiveWalk(Job):
    """Reads one archive once.

    Fixed: the stream, the drives of interest. Changing: progress.
    """

    def __init__(
        self,
        stream: Extents,
        drives: list[DriveInfo],
        *,
        speed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        trace: Trace | None = None,
    ) -> None:
        super().__init__(speed=speed, clock=clock, trace=trace)
        self.stream = stream
        self.drives = {drive.drive_id: drive for drive in drives}
        self._progress = {
            drive.drive_id: DriveProgress(drive.name, drive.size, to_read=stream.stored.get(drive.name))
            for drive in drives
        }
        self.progress.drives = list(self._progress.values())

    @property
    def damage(self) -> list[Damage]:
        """What was found wrong, where that does not end the job; only of the drives of interest."""
        names = {drive.name for drive in self.drives.values()}
        return [damage for damage in self.stream.damage if damage.drive is None or damage.drive in names]

    async def _walk(self) -> None:
        """Read all extents and hand them to _take()."""
        loop = asyncio.get_running_loop()
        extents: Iterator[CheckedExtent] = self.stream.extents(self.drives)
        with ThreadPoolExecutor(1, thread_name_prefix="pybackup-archive") as reader:
            upcoming = loop.run_in_executor(reader, _some_of, extents)
            try:
                while some := await upcoming:
                    await self._pace(sum(checked.extent.header.data_size for checked in some))
                    upcoming = loop.run_in_executor(reader, _some_of, extents)
                    self.progress.consumed = self.stream.consumed
                    for checked in some:
                        await self._take(checked)
                        self._count(checked.extent)
            finally:
                # The thread may wait for a pipe that says no more; it must end before its pool can be closed.
                self.stream.stop()
                await ended([upcoming])

    @abstractmethod
    async def _take(self, checked: CheckedExtent) -> None:
        """Do with an extent whatever the job is for."""

    def _count(self, extent: DecodedExtent) -> None:
        for drive_id, first, count, mask in extent.header.runs:
            progress = self._progress.get(drive_id)
            if progress is not None:
                size = bytes_of(progress.size, first, count)
                stored = stored_bytes(mask, size)
                progress.done += size
                progress.read += stored
                progress.zero += size - stored


def _some_of(extents: Iterator[CheckedExtent]) -> list[CheckedExtent]:
    """The next extents, at least one, none at the end: of data about one, for the way to a thread costs 0.1 ms."""
    some: list[CheckedExtent] = []
    size = 0
    for checked in extents:
        some.append(checked)
        size += checked.extent.header.data_size
        if size >= MOST_BYTES or len(some) >= MOST_EXTENTS:
            break
    return some


def bytes_of(drive_size: int, first: int, count: int) -> int:
    """Bytes of clusters on a drive, of which the last may be partial."""
    return max(0, min((first + count) * CLUSTER_SIZE, drive_size) - first * CLUSTER_SIZE)


class Run(NamedTuple):
    """Bytes in a row on a drive: ``buffers`` has them, or is None where they are zeros."""

    drive_id: int
    offset: int
    length: int
    buffers: list[memoryview] | None


def runs_of(extent: DecodedExtent, whole: Collection[int] = ()) -> Iterator[Run]:
    """What an extent holds, in its order, neighbours joined; lost clusters are left out.

    ``whole``: of these drives a cluster of which blocks are zero comes as its 65536 bytes, instead of in short runs.
    """
    run: Run | None = None
    for one in _unjoined(extent, whole):
        if run and _continues(run, one):
            if run.buffers is not None and one.buffers is not None:
                run.buffers.extend(one.buffers)
            run = run._replace(length=run.length + one.length)
            continue
        if run:
            yield run
        run = one
    if run:
        yield run


def _unjoined(extent: DecodedExtent, whole: Collection[int]) -> Iterator[Run]:
    """What an extent holds, in its order, in the runs of its slots or less."""
    behind = 0
    for drive_id, first, count, mask in extent.header.runs:
        at, behind = behind, behind + count
        if not mask:
            yield Run(drive_id, first * CLUSTER_SIZE, count * CLUSTER_SIZE, None)
            continue
        parts = [part for part in extent.stored[at:behind] if part is not None]
        if mask == FULL_MASK and len(parts) == count:
            yield Run(drive_id, first * CLUSTER_SIZE, count * CLUSTER_SIZE, parts)
            continue
        for cluster, stored in enumerate(extent.stored[at:behind], first):
            if stored is None:
                continue
            for low, high, part in _whole(mask, stored) if drive_id in whole else _ranges_of(mask, stored):
                buffers = None if part is None else [part]
                yield Run(drive_id, cluster * CLUSTER_SIZE + low, high - low, buffers)


def _whole(mask: int, stored: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    yield 0, CLUSTER_SIZE, stored if mask == FULL_MASK else memoryview(expand(mask, stored))


def _continues(run: Run, other: Run) -> bool:
    alike = (run.buffers is None) == (other.buffers is None)
    return alike and run.drive_id == other.drive_id and run.offset + run.length == other.offset


def _ranges_of(mask: int, stored: memoryview) -> Iterator[tuple[int, int, memoryview | None]]:
    """(start, end, bytes or None for zeros) of the ranges within a cluster, in order."""
    if mask == FULL_MASK:
        yield 0, CLUSTER_SIZE, stored
        return
    at = used = 0
    for low, high in stored_ranges(mask):
        if low > at:
            yield at, low, None
        yield low, high, stored[used : used + high - low]
        used += high - low
        at = high
    if at < CLUSTER_SIZE:
        yield at, CLUSTER_SIZE, None
