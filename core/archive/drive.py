"""A drive inside an archive, as a read-only disk: random access by the index."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pybackup.core.device import CLUSTER_SIZE, BlockStatus, Buffer
from pybackup.core.devices.read_only import ReadOnlyDevice
from pybackup.core.errors import ArchiveError
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.formats.vma import DriveInfo

from .kept import NotKeptError
from .view import ArchiveView

STATUS_STEP = 4096
"""Extents in one answer, at most."""
STATUS_CLUSTERS = 1 << 16
"""Clusters that are looked up at once: 4 GiB."""
READ_NOW_MOST = 128 << 10
"""Bytes of a read that is answered in the event loop: to copy two clusters and prove them takes 0.1 ms, and what is
longer two threads do at once: nbdcopy, which asks for 256 KiB, took 1.20 s of the loop, and 1.09 s of the threads."""
READERS_KNOWN = 8
"""Places where a read ended that are remembered: a read that begins at one goes on from it."""
AHEAD = 16
"""Clusters that are brought behind a read that goes on from another: 1 MiB, a few frames."""


class ArchiveDrive(ReadOnlyDevice):
    """One drive, of a full archive or of a delta with its ancestors.

    Fixed: where it is read, and by which threads. Changing, by the event loop's thread: where the last reads
    ended with the cluster up to which was read ahead there, and the call that reads ahead.
    """

    def __init__(
        self,
        archive: ArchiveView,
        drive: DriveInfo,
        threads: ThreadPoolExecutor | None = None,
        *,
        reads_ahead: bool = False,
    ) -> None:
        """``threads``: those of all drives of the archive, which stay open; None for one thread of its own.

        ``reads_ahead``: what lies behind a read that goes on from another one is brought without being asked for.
        """
        self._archive, self._drive, self._reads_ahead = archive, drive, reads_ahead
        self._calls = BlockingCalls(threads, threads=1)
        self._ends: OrderedDict[int, int] = OrderedDict()
        self._ahead: Future[None] | None = None
        self._closing = False
        self.size, self.name = drive.size, f"{archive.name}:{drive.name}"

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read exactly ``length`` bytes; damage is OSError (EIO)."""
        data = await self._calls.run(self._read, offset, length)
        self._go_ahead(offset, length)
        return data

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """What is zeros, or in frames that are kept; of damage pread() tells."""
        if length > READ_NOW_MOST:
            return None
        try:
            data = self._join(self._archive.read_kept, offset, length)
        except (NotKeptError, ArchiveError):
            return None
        self._go_ahead(offset, length)
        return data

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self._join(self._archive.read_cluster, offset, length)
        except ArchiveError as error:
            raise OSError(errno.EIO, str(error), self.name) from error

    def _join(self, read_cluster: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
        parts = []
        while length:
            start = offset % CLUSTER_SIZE
            cluster = read_cluster(self._drive.drive_id, offset // CLUSTER_SIZE)
            part = cluster[start : start + length]
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- read-ahead --

    def _go_ahead(self, offset: int, length: int) -> None:
        """A read has been answered. Where it goes on from another one, bring what lies behind, if nothing else is done.

        Who has several requests in flight reads ahead himself: then a call is under way mostly.
        """
        if not self._reads_ahead:
            return
        end = offset + length
        ahead = self._ends.pop(offset, None)
        self._ends[end] = ahead or 0
        if len(self._ends) > READERS_KNOWN:
            self._ends.popitem(last=False)
        first = end // CLUSTER_SIZE
        if ahead is None or ahead > first + AHEAD // 2 or not self._calls.idle or self._closing:
            return
        if self._ahead is not None:
            self._ahead.result()  # a bug is told
            self._ahead = None
        behind = min(first + AHEAD, self._drive.clusters)
        if max(first, ahead) < behind:
            self._ends[end] = behind
            self._ahead = self._calls.start(self._bring, max(first, ahead), behind)

    def _bring(self, first: int, end: int) -> None:
        """Have the frames of these clusters kept, and the clusters proved. What fails, fails once more when read."""
        try:
            for cluster in range(first, end):
                if self._closing:
                    return
                self._archive.read_cluster(self._drive.drive_id, cluster)
        except ArchiveError:
            return

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
        self._closing = True
        await self._calls.close()
