"""A delta, written: of what is put in only what differs from the parent's view goes on into the archive."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.errors import SourceError
from pybackup.core.sinks import Sink
from pybackup.core.trace import Trace
from pybackup.formats.archive import ArchiveEncoder
from pybackup.formats.clusters import ClusterRun, Part, scan, stored_bytes, zero_run
from pybackup.formats.vma import DriveInfo
from pybackup.formats.vma_layout import CLUSTER_DIGEST_SIZE

from .index_memory import IndexMemory
from .intake import Piece, Prepared
from .shared_cache import SharedCache
from .view import ArchiveView, ViewRun
from .writer import ArchiveWriter

WINDOW, WINDOWS_KEPT = 1 << 12, 4
"""Clusters that are looked up together in the parent by who goes through a drive, and how many such are kept."""
FEW = 16
"""Clusters that are looked up alone: a guest's writes are all over the drive."""


class ParentDrives:
    """What the parent of a delta has of the delta's drives. Fixed: all but what is kept of the parent's view."""

    def __init__(self, view: ArchiveView, drives: Sequence[DriveInfo]) -> None:
        self._view = view
        self._drives = {drive.drive_id: view.header.by_name.get(drive.name) for drive in drives}
        self._windows: SharedCache[list[ViewRun]] = SharedCache(WINDOWS_KEPT, lambda _: 1)

    def drive(self, drive_id: int) -> DriveInfo | None:
        """The parent's drive of the name of a drive of the delta."""
        return self._drives[drive_id]

    def changed(self, drive_id: int, first: int, runs: Sequence[ClusterRun]) -> Iterator[tuple[int, ClusterRun]]:
        """(first cluster, run) of what differs from the parent, of clusters in a row from ``first`` on.

        ArchiveError where the parent cannot be read.
        """
        end = first + sum(run.clusters for run in runs)
        drive = self._drives[drive_id]
        known_end = first if drive is None else max(first, min(end, drive.clusters))
        known: list[ViewRun] = []
        if drive is not None and known_end > first:
            known = self._known(drive, first, known_end)
        at, theirs = first, 0
        for run in runs:
            rest: ClusterRun | None = run
            while rest is not None:
                if at >= known_end:
                    yield at, rest
                    at += rest.clusters
                    break
                clusters = min(rest.clusters, known[theirs].end - at)
                part, rest = rest.cut(clusters) if clusters < rest.clusters else (rest, None)
                yield from _differing(at, part, known[theirs])
                at += clusters
                theirs += at == known[theirs].end

    def _known(self, drive: DriveInfo, first: int, end: int) -> list[ViewRun]:
        """What the parent has of clusters [first, end), in order; the first and the last run may go on beyond.

        A long chain has many archives to look into, and mostly the next clusters are wanted next.
        """
        number = first // WINDOW
        window = self._windows.peek((drive.drive_id, number))
        if (window is None and end - first < FEW) or end > (number + 1) * WINDOW:
            return self._view.resolve(drive.drive_id, first, end)
        start = number * WINDOW
        until = min(start + WINDOW, drive.clusters)
        window = self._windows.get((drive.drive_id, number), lambda: self._view.resolve(drive.drive_id, start, until))
        low = bisect_right(window, first, key=_first_of) - 1
        return window[low : bisect_left(window, end, key=_first_of)]

    def changed_zeros(self, drive_id: int, first: int, count: int) -> list[tuple[int, int]]:
        """(first cluster, clusters) of those in a row that are zero now, and were not in the parent."""
        return [(at, run.clusters) for at, run in self.changed(drive_id, first, [zero_run(count)])]

    def zeros_now(self, drive_id: int, first: int, count: int) -> list[tuple[int, int]] | None:
        """changed_zeros(), if what the parent has there is kept, so that nothing has to be read; else None."""
        drive, number = self._drives[drive_id], first // WINDOW
        is_within = drive is not None and first + count <= min(drive.clusters, (number + 1) * WINDOW)
        if not is_within or drive is None or self._windows.peek((drive.drive_id, number)) is None:
            return None
        return self.changed_zeros(drive_id, first, count)


def _first_of(run: ViewRun) -> int:
    return run.first


def _differing(at: int, run: ClusterRun, known: ViewRun) -> Iterator[tuple[int, ClusterRun]]:
    """What of a run differs from the parent's, which has all these clusters."""
    if not run.mask and known.segment is None:
        return
    if not run.mask or known.segment is None:
        yield at, run
        return
    digests = known.segment.digests(known.number + at - known.first, run.clusters)
    if digests == b"".join(run.digests):
        return
    theirs = [digests[low : low + CLUSTER_DIGEST_SIZE] for low in range(0, len(digests), CLUSTER_DIGEST_SIZE)]
    first = 0
    while first < run.clusters:
        alike = theirs[first] == run.digests[first]
        end = first + 1
        while end < run.clusters and (theirs[end] == run.digests[end]) == alike:
            end += 1
        if not alike:
            yield at + first, _part(run, first, end)
        first = end


def _part(run: ClusterRun, first: int, end: int) -> ClusterRun:
    """Clusters [first, end) of a run."""
    if end < run.clusters:
        run, _ = run.cut(end)
    if first:
        _, run = run.cut(first)
    return run


def _copied(run: ClusterRun) -> ClusterRun:
    """The same run, with a buffer of its own."""
    content = b"".join(memoryview(part.buffer)[part.start : part.end] for part in run.parts)
    return run._replace(parts=(Part(content, 0, len(content)),)) if content else run


class DeltaWriter(ArchiveWriter):
    """Writes a delta. Fixed, beside what every writer has: the parent."""

    def __init__(
        self,
        encoder: ArchiveEncoder,
        sink: Sink,
        pool: ThreadPoolExecutor,
        parent: ArchiveView,
        parent_told: dict[str, Any],
        *,
        threads: int,
        trace: Trace | None = None,
        seal: Callable[[], Awaitable[None]] | None = None,
        memory: IndexMemory | None = None,
    ) -> None:
        """``parent_told``: what the archive tells of its parent."""
        super().__init__(encoder, sink, pool, threads=threads, trace=trace, seal=seal, memory=memory)
        self._parent = ParentDrives(parent, encoder.header.drives)
        self.told = dict(parent_told)

    async def prepare(self, pieces: Sequence[Piece], pool: ThreadPoolExecutor) -> Sequence[Prepared]:
        """Compute digests, and look for what differs from the parent, in threads."""
        return await asyncio.get_running_loop().run_in_executor(pool, self._prepare_all, pieces)

    def _prepare_all(self, pieces: Sequence[Piece]) -> list[Prepared]:
        return [self._prepare(piece) for piece in pieces]

    def _prepare(self, piece: Piece) -> Prepared:
        changed = list(self._parent.changed(piece.drive_id, piece.first, scan(piece.content)))
        found = sum(stored_bytes(run.mask, run.clusters * CLUSTER_SIZE) for _, run in changed)
        # A few clusters that wait for others must not hold the buffer that they were found in.
        keep = 2 * found > len(piece.content)
        runs = [run if keep else _copied(run) for _, run in changed]
        return Prepared(piece.content, runs, [at - piece.first for at, _ in changed])

    async def take(self, drive_id: int, first: int, prepared: Prepared) -> None:
        """Take what differs; waits while too much is in flight."""
        if prepared.runs is None or prepared.places is None:
            raise AssertionError("not prepared by prepare()")
        async with self._turn:
            for place, run in zip(prepared.places, prepared.runs, strict=True):
                self._encoder.add(drive_id, first + place, [run])
            await self._submit_ready()

    async def put_zeros(self, drive_id: int, first: int, count: int) -> int:
        """Take those of zero clusters in a row that were not zero in the parent; how many these are."""
        changed = self._parent.zeros_now(drive_id, first, count)
        if changed is None:
            loop = asyncio.get_running_loop()
            changed = await loop.run_in_executor(None, self._parent.changed_zeros, drive_id, first, count)
        for at, clusters in changed:
            await super().put_zeros(drive_id, at, clusters)
        return sum(clusters for _, clusters in changed)

    async def put_unchanged(self, drive_id: int, first: int, count: int) -> None:
        """Nothing is to be written. SourceError where the parent has none of them: whoever says so is wrong."""
        drive = self._parent.drive(drive_id)
        if drive is None or first + count > drive.clusters:
            raise SourceError(
                f"clusters {first} to {first + count - 1} are said to be as the parent has them; it has none"
            )

    async def differs(self, piece: Piece) -> bool:
        """Whether any of these clusters differs from the parent."""
        (prepared,) = await asyncio.get_running_loop().run_in_executor(None, self._prepare_all, [piece])
        return bool(prepared.runs)
