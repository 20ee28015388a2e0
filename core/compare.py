"""The compare job: is this disk what the archive holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pybackup.formats.vma import DriveInfo

from .archive_stream import CheckedExtent
from .archive_walk import ArchiveWalk, Extents, Run, runs_of
from .device import BlockDevice, BlockStatus, Buffer
from .errors import SourceError

STEP = 1 << 20
GRAIN = 512
"""Bytes: differences are told in sectors."""


class CompareJob(ArchiveWalk):
    """Compares disks with the drives of an archive.

    Fixed: the disks by drive. Changing: ``differences``, ranges (drive name, offset, length) in bytes, joined where
    they touch, and ``different``, their sum; of very many only the first are kept.
    """

    MOST_RANGES = 10_000

    def __init__(self, stream: Extents, disks: dict[DriveInfo, BlockDevice], **options: Any) -> None:
        super().__init__(stream, list(disks), **options)
        self._disks = {drive.drive_id: disk for drive, disk in disks.items()}
        self.differences: list[tuple[str, int, int]] = []
        self.different = 0

    async def _work(self) -> None:
        for drive_id, disk in self._disks.items():
            drive = self.drives[drive_id]
            common = min(drive.size, disk.size)
            if disk.size != drive.size:
                self._differ(drive.name, common, max(drive.size, disk.size) - common)
        await self._walk()
        self.differences.sort()

    async def _take(self, checked: CheckedExtent) -> None:
        for run in runs_of(checked.extent):
            disk = self._disks.get(run.drive_id)
            if disk is not None and run.offset < min(disk.size, self.drives[run.drive_id].size):
                await self._compare(disk, run)

    async def _compare(self, disk: BlockDevice, run: Run) -> None:
        end = min(run.offset + run.length, disk.size, self.drives[run.drive_id].size)
        if run.buffers is None:
            await self._compare_zeros(disk, run, end)
            return
        content = await self._read(disk, run.offset, end - run.offset)
        expected = run.buffers[0] if len(run.buffers) == 1 else memoryview(b"".join(run.buffers))
        await self._compare_bytes(run.drive_id, run.offset, content, expected[: end - run.offset])

    async def _compare_zeros(self, disk: BlockDevice, run: Run, end: int) -> None:
        at = run.offset
        while at < end:
            for status in await self._extents(disk, at, end - at):
                if not status.zero:
                    await self._compare_with_zeros(disk, run.drive_id, status.offset, min(status.end, end))
                at = status.end

    async def _compare_with_zeros(self, disk: BlockDevice, drive_id: int, at: int, end: int) -> None:
        for offset in range(at, end, STEP):
            length = min(STEP, end - offset)
            content = await self._read(disk, offset, length)
            await self._compare_bytes(drive_id, offset, content, memoryview(bytes(length)))

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

    async def _compare_bytes(self, drive_id: int, offset: int, content: Buffer, expected: memoryview) -> None:
        if await asyncio.to_thread(_equal, content, expected):
            return
        name = self.drives[drive_id].name
        for at in range(0, len(expected), GRAIN):
            if bytes(content[at : at + GRAIN]) != bytes(expected[at : at + GRAIN]):
                self._differ(name, offset + at, min(GRAIN, len(expected) - at))

    def _differ(self, name: str, offset: int, length: int) -> None:
        self.different += length
        last = self.differences[-1] if self.differences else None
        if last and last[0] == name and last[1] + last[2] == offset:
            self.differences[-1] = (name, last[1], last[2] + length)
        elif len(self.differences) < self.MOST_RANGES:
            self.differences.append((name, offset, length))


def _equal(content: Buffer, expected: memoryview) -> bool:
    # bytes compare with memcmp, memoryviews item by item.
    return bytes(content) == bytes(expected)
