"""The compare job: is this disk what the archive holds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence

from pybackup.core.archive.checked_extent import CheckedExtent
from pybackup.core.device import BlockDevice, BlockStatus, Buffer
from pybackup.core.errors import SourceError
from pybackup.core.tasks import end
from pybackup.core.trace import Trace
from pybackup.formats.vma import DriveInfo

from .walk import ArchiveWalk, Extents, Run, runs_of

STEP = 1 << 20
"""Bytes that are read at once where the archive has zeros."""
MAP_STEP = 1 << 30
"""Bytes for which a disk is asked at once where its data lies: of a fragmented one that is a long list."""
COMPARED_AHEAD = 3
"""Runs, of an extent's 3.6 MiB at most, that are read from the disk while the archive is read on."""
GRAIN = 512
"""Bytes: differences are told in sectors."""
_ZEROS = memoryview(bytes(STEP))
Difference = tuple[str, int, int]
"""A drive's name, and a range of it: offset and length in bytes."""


class CompareJob(ArchiveWalk):
    """Compares disks with the drives of an archive.

    Fixed: the disks by drive; ``larger``: by how many bytes the disk of a drive, by its name, is larger than that,
    which is no difference, for drives are restored to such disks too; and ``smaller``, which is one. Changing:
    ``differences``, ranges (drive name, offset, length) in bytes, joined where they touch, and ``different``, their
    sum; of very many only the first are kept.
    """

    MOST_RANGES = 10_000

    def __init__(
        self, stream: Extents, disks: dict[DriveInfo, BlockDevice], *, speed: int = 0, trace: Trace | None = None
    ) -> None:
        super().__init__(stream, list(disks), speed=speed, trace=trace)
        self._disks = {drive.drive_id: disk for drive, disk in disks.items()}
        self.differences: list[Difference] = []
        self.different = 0
        self.larger = {drive.name: disk.size - drive.size for drive, disk in disks.items() if disk.size > drive.size}
        self.smaller = {drive.name: drive.size - disk.size for drive, disk in disks.items() if disk.size < drive.size}
        self._ahead: deque[asyncio.Task[list[Difference]]] = deque()

    async def _work(self) -> None:
        for drive_id, disk in self._disks.items():
            drive = self.drives[drive_id]
            if disk.size < drive.size:
                self._differ(drive.name, disk.size, drive.size - disk.size)
        try:
            await self._walk()
            await self._settle(0)
        finally:
            await end(self._ahead)
        self.differences.sort()

    async def _take(self, checked: CheckedExtent) -> None:
        for run in runs_of(checked.extent, whole=self._disks):
            disk = self._disks.get(run.drive_id)
            if disk is not None and run.offset < min(disk.size, self.drives[run.drive_id].size):
                self._ahead.append(asyncio.create_task(self._compare(disk, run)))
                await self._settle(COMPARED_AHEAD)

    async def _settle(self, keep: int) -> None:
        """Take what was found, in the order of the archive, until so many runs are left under way."""
        while len(self._ahead) > keep:
            for difference in await self._ahead[0]:
                self._differ(*difference)
            self._ahead.popleft()

    async def _compare(self, disk: BlockDevice, run: Run) -> list[Difference]:
        name, end = self.drives[run.drive_id].name, min(run.offset + run.length, disk.size)
        end = min(end, self.drives[run.drive_id].size)
        if run.buffers is None:
            return await self._compare_zeros(disk, name, run.offset, end)
        content = await self._read(disk, run.offset, end - run.offset)
        return list(_differences(name, run.offset, content, run.buffers))

    async def _compare_zeros(self, disk: BlockDevice, name: str, at: int, end: int) -> list[Difference]:
        found: list[Difference] = []
        while at < end:
            for status in await self._extents(disk, at, min(end - at, MAP_STEP)):
                if not status.zero:
                    found += await self._compare_with_zeros(disk, name, status.offset, min(status.end, end))
                at = status.end
        return found

    async def _compare_with_zeros(self, disk: BlockDevice, name: str, at: int, end: int) -> list[Difference]:
        found: list[Difference] = []
        for offset in range(at, end, STEP):
            content = await self._read(disk, offset, min(STEP, end - offset))
            found += _differences(name, offset, content, [_ZEROS])
        return found

    async def _extents(self, disk: BlockDevice, offset: int, length: int) -> Sequence[BlockStatus]:
        try:
            return await disk.extents(offset, length)
        except OSError:
            # Any error means: read it, and the reading tells what is wrong.
            return [BlockStatus(offset, length, zero=False, hole=False)]

    async def _read(self, disk: BlockDevice, offset: int, length: int) -> Buffer:
        try:
            return await disk.pread(offset, length)
        except OSError as error:
            raise SourceError(f"cannot read {disk.name} at byte {offset}: {error.strerror or error}") from error

    def _differ(self, name: str, offset: int, length: int) -> None:
        self.different += length
        last = self.differences[-1] if self.differences else None
        if last and last[0] == name and last[1] + last[2] == offset:
            self.differences[-1] = (name, last[1], last[2] + length)
        elif len(self.differences) < self.MOST_RANGES:
            self.differences.append((name, offset, length))


def _differences(name: str, offset: int, content: Buffer, expected: Sequence[memoryview]) -> Iterator[Difference]:
    """Where what was read from ``offset`` on differs from the buffers, which may be longer; in sectors."""
    # startswith() is a memcmp without a copy; memoryviews compare item by item.
    read = bytes(content) if isinstance(content, memoryview) else content
    at = 0
    for part in expected:
        want = part[: len(read) - at]
        if not read.startswith(want, at):
            for low in range(0, len(want), GRAIN):
                sector = want[low : low + GRAIN]
                if not read.startswith(sector, at + low):
                    yield name, offset + at + low, len(sector)
        at += len(want)
