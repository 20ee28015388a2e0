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

from .view import ArchiveView

STATUS_STEP = 4096
"""Extents in one answer, at most."""
STATUS_CLUSTERS = 1 << 16
"""Clusters that are looked up at once: 4 GiB."""


class ArchiveDrive(ReadOnlyDevice):
    """One drive, of a full archive or of a delta with its ancestors. Fixed: all."""

    def __init__(self, archive: ArchiveView, drive: DriveInfo, threads: ThreadPoolExecutor | None = None) -> None:
        """``threads``: those of all drives of the archive, which stay open; None for one thread of its own."""
        self._archive, self._drive = archive, drive
        self._calls = BlockingCalls(threads, threads=1)
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
            behind = min(-(-end // CLUSTER_SIZE), cluster + STATUS_CLUSTERS)
            try:
                runs = self._archive.resolve(self._drive.drive_id, cluster, behind)
            except ArchiveError as error:
                raise OSError(errno.EIO, str(error), self.name) from error
            for run in runs:
                run_end = min(run.end * CLUSTER_SIZE, end)
                zero = run.segment is None
                if found and found[-1].zero == zero:
                    last = found.pop()
                    found.append(BlockStatus(last.offset, run_end - last.offset, zero, zero))
                else:
                    found.append(BlockStatus(offset, run_end - offset, zero, zero))
                offset = run_end
        return found[:STATUS_STEP]

    async def close(self) -> None:
        """Wait for reads under way; the archive stays open."""
        await self._calls.close()
