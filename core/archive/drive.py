"""A drive inside an archive, as a read-only disk: random access by the index."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pybackup.core.device import CLUSTER_SIZE, BlockStatus, Buffer
from pybackup.core.devices.read_only import ReadOnlyDevice
from pybackup.core.errors import ArchiveError
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.formats.vma import DriveInfo

from .index import ArchiveIndex

STATUS_STEP = 4096
"""Extents in one answer, at most."""


class ArchiveDrive(ReadOnlyDevice):
    """One drive. Fixed: all. The archive's caches are used by one thread at a time, so its drives share that thread."""

    def __init__(self, archive: ArchiveIndex, drive: DriveInfo, thread: ThreadPoolExecutor | None = None) -> None:
        """``thread``: an executor with one thread, which stays open; None for an archive of which this is all."""
        self._archive, self._drive = archive, drive
        self._calls = BlockingCalls(thread, threads=1)
        self.size, self.name = drive.size, f"{archive.name}:{drive.name}"

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read exactly ``length`` bytes; damage is OSError (EIO)."""
        return await self._calls.run(self._read, offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        parts = []
        try:
            while length:
                start = offset % CLUSTER_SIZE
                cluster = self._archive.read_cluster(self._drive.drive_id, offset // CLUSTER_SIZE)
                part = cluster[start : start + length]
                parts.append(part)
                offset += len(part)
                length -= len(part)
        except ArchiveError as error:
            raise OSError(errno.EIO, str(error), self.name) from error
        return b"".join(parts)

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """What the index says: zero clusters and stored ones."""
        return await self._calls.run(self._extents, offset, length)

    def _extents(self, offset: int, length: int) -> list[BlockStatus]:
        found: list[BlockStatus] = []
        end = offset + length
        while offset < end and len(found) < STATUS_STEP:
            cluster = offset // CLUSTER_SIZE
            try:
                left, segment, _ = self._archive.run_at(self._drive.drive_id, cluster)
            except ArchiveError as error:
                raise OSError(errno.EIO, str(error), self.name) from error
            run_end = min((cluster + left) * CLUSTER_SIZE, end)
            zero = segment is None
            if found and found[-1].zero == zero:
                last = found.pop()
                found.append(BlockStatus(last.offset, run_end - last.offset, zero, zero))
            else:
                found.append(BlockStatus(offset, run_end - offset, zero, zero))
            offset = run_end
        return found

    async def close(self) -> None:
        """Wait for reads under way; the archive stays open."""
        await self._calls.close()
