"""The job that restores a part of a drive: from one byte to another, and no frame more of the archive than it needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence

from pybackup.core.device import CLUSTER_SIZE, BlockDevice, BlockStatus, Buffer
from pybackup.core.endpoints.targets import RestoreTarget
from pybackup.core.errors import ArchiveError, PybackupError
from pybackup.core.tasks import end, see_through
from pybackup.core.trace import Trace

from .job import DriveProgress, Job

PIECE = 1 << 20
"""Bytes read at once."""
READS_AHEAD = 4
"""Reads under way, for a store's latency."""


class RestorePartJob(Job):
    """Writes bytes [offset, offset + length) of a disk to a target, which begins with the first of them.

    Fixed: all but progress.
    """

    def __init__(
        self,
        disk: BlockDevice,
        target: RestoreTarget,
        *,
        name: str,
        offset: int,
        length: int,
        speed: int = 0,
        trace: Trace | None = None,
    ) -> None:
        """``name`` of the drive."""
        super().__init__(speed=speed, trace=trace)
        self._disk, self._target = disk, target
        self._offset, self._length = offset, length
        self._progress = DriveProgress(name, length)
        self.progress.drives = [self._progress]

    async def run(self) -> None:
        """As for every job; a failure also tells what is left under which name."""
        try:
            await super().run()
        except PybackupError as error:
            if self._target.left is not None:
                error.args = (f"{error}; {self._target.left}", *error.args[1:])
            raise

    async def _work(self) -> None:
        is_done = False
        try:
            await self._target.begin(self._length)
            await self._copy()
            await self._target.sync()
            await self._decide(self._take_name)
            is_done = True
        finally:
            if not is_done:
                await self._target.abort()

    async def _take_name(self) -> None:
        taking = asyncio.create_task(self._target.commit())
        await see_through(taking)
        taking.result()

    async def _copy(self) -> None:
        reads: deque[tuple[int, int, asyncio.Task[Buffer] | None]] = deque()
        try:
            async for at, size, zero in self._pieces():
                if not zero:
                    await self._pace(size)
                reads.append((at, size, None if zero else asyncio.create_task(self._read(at, size))))
                if len(reads) > READS_AHEAD:
                    await self._write(*reads.popleft())
            while reads:
                await self._write(*reads.popleft())
        finally:
            await end(task for _, _, task in reads if task is not None)

    async def _pieces(self) -> AsyncIterator[tuple[int, int, bool]]:
        """(offset on the disk, bytes, whether they are zero): zeros in rows, data in pieces cut at clusters."""
        at, behind = self._offset, self._offset + self._length
        while at < behind:
            for status in await self._extents(at, behind - at):
                end_of_run = min(status.end, behind)
                if status.zero:
                    yield at, end_of_run - at, True
                    at = end_of_run
                while at < end_of_run:
                    cut = min(end_of_run, (at // CLUSTER_SIZE) * CLUSTER_SIZE + PIECE)
                    yield at, cut - at, False
                    at = cut

    async def _write(self, at: int, size: int, read: asyncio.Task[Buffer] | None) -> None:
        place = at - self._offset
        if read is None:
            if self._target.wants_zeros:
                await self._target.zeros(place, size)
            self._progress.zero += size
        else:
            await self._target.write([(place, [memoryview(await read)])])
            self._progress.read += size
        self._progress.done += size

    async def _extents(self, at: int, length: int) -> Sequence[BlockStatus]:
        with _archive_errors():
            return await self._disk.extents(at, length)

    async def _read(self, at: int, size: int) -> Buffer:
        with _archive_errors():
            return await self._disk.pread(at, size)


@contextlib.contextmanager
def _archive_errors() -> Iterator[None]:
    """Within the body what a drive of an archive cannot read is told as the archive's failure that it is."""
    try:
        yield
    except OSError as error:
        if isinstance(error.__cause__, ArchiveError):
            raise error.__cause__ from None
        raise ArchiveError(f"cannot read {error.filename or 'the archive'}: {error.strerror or error}") from error
