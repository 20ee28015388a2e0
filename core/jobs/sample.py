"""The sample job: reads a random share of what an archive stores, by its index, and proves that much of it."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from pybackup.core.archive.damage import Damage
from pybackup.core.archive.index import MOST_PARTS, SEGMENTS_AHEAD, ArchiveIndex
from pybackup.core.errors import ArchiveError
from pybackup.core.tasks import ended
from pybackup.core.trace import Trace
from pybackup.formats.cluster_index import RUN_STORED
from pybackup.formats.cluster_lookup import FrameGroup, Segment
from pybackup.formats.errors import FormatError
from pybackup.formats.vma_layout import CLUSTER_SIZE

from .job import Job


class SampleJob(Job):
    """Reads whole frames, evenly strewn from a random one on, and checks every cluster in them.

    Fixed: the archive's index, the share (0 to 1), the randomness. Changing: ``clusters`` and ``read``, how many the
    archive stores and how many were read; ``damage``, what was found wrong.
    """

    def __init__(
        self,
        archive: ArchiveIndex,
        share: float,
        *,
        stop: Callable[[], None] = lambda: None,
        chance: random.Random | None = None,
        speed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        trace: Trace | None = None,
    ) -> None:
        """``stop`` ends reads that wait."""
        super().__init__(speed=speed, clock=clock, trace=trace)
        self.archive, self.share = archive, share
        self.clusters = self.read = 0
        self.damage: list[Damage] = []
        self._stop, self._chance = stop, chance or random.Random()
        self._sum = self._chance.random()
        self._spare: tuple[Segment, FrameGroup] | None = None

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        with (
            ThreadPoolExecutor(SEGMENTS_AHEAD, thread_name_prefix="pybackup-index") as ahead,
            ThreadPoolExecutor(1, thread_name_prefix="pybackup-sample") as reader,
        ):
            chosen = self._chosen(ahead)
            upcoming = loop.run_in_executor(reader, self._read_next, chosen)
            try:
                while (size := await upcoming) is not None:
                    await self._pace(size)
                    upcoming = loop.run_in_executor(reader, self._read_next, chosen)
            finally:
                self._stop()
                await ended([upcoming])

    def _read_next(self, chosen: Iterator[tuple[Segment, FrameGroup]]) -> int | None:
        """Read one group of frames; the bytes of its clusters, None at the end."""
        try:
            found = next(chosen, None)
        except (ArchiveError, FormatError) as error:
            # Without a part of the index nobody knows what else there is.
            self.damage.append(Damage(str(error)))
            return None
        if found is None:
            return None
        segment, group = found
        try:
            for number, drive_id, cluster in _clusters(segment, group):
                self.archive.read_stored(segment, number, drive_id, cluster)
                self.read += 1
        except ArchiveError as error:
            self.damage.append(Damage(str(error)))
        self.progress.consumed = min(group.frames[-1].file_offset, self.archive.size), self.archive.size
        return (group.end - group.first) * CLUSTER_SIZE

    def _chosen(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Segment, FrameGroup]]:
        """So many groups of frames as the share says; and one at least, where there are any."""
        chose, seen = False, 0
        for segment in self.archive.segments(self.archive.directory.segments, pool):
            for group in segment.frame_groups(MOST_PARTS):
                self.clusters += group.end - group.first
                if self._is_next():
                    chose = True
                    yield segment, group
                elif not chose:
                    seen += 1
                    if self._chance.random() * seen < 1:
                        self._spare = segment, group
        if not chose and self._spare is not None:
            yield self._spare

    def _is_next(self) -> bool:
        """As many as the share says, evenly; which ones, the random beginning decides."""
        before, self._sum = self._sum, self._sum + self.share
        return math.floor(self._sum) > math.floor(before)


def _clusters(segment: Segment, group: FrameGroup) -> Iterator[tuple[int, int, int]]:
    """(number, drive id, cluster) of all that a group of frames holds."""
    number = 0
    for drive_id, kind, first, count in segment.runs:
        if kind != RUN_STORED:
            continue
        for at in range(max(number, group.first), min(number + count, group.end)):
            yield at, drive_id, first + at - number
        number += count
        if number >= group.end:
            return
