"""The backup job: freezes the drives, copies every cluster once, and makes an archive of them.

Two flows end in the archive: the background loop walks over each drive in order, and guests' writes push the old
clusters in front of them (see guest_copies.py). Claims decides who copies what.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from pybackup.core.archive.intake import Intake, Piece, Prepared
from pybackup.core.cow.claims import Claims
from pybackup.core.cow.copy_before_write import CopyBeforeWrite, freeze
from pybackup.core.cow.guest_copies import GuestCopies, OnError
from pybackup.core.cow.old_data import OldData
from pybackup.core.device import CLUSTER_SIZE, Buffer
from pybackup.core.devices.unreadable import LostRanges, read_around_errors
from pybackup.core.errors import Advice, RequestError, SourceError, TargetFullError
from pybackup.core.guest.consistency import CRASH, Stillness
from pybackup.core.inflight import Range
from pybackup.core.tasks import uninterrupted
from pybackup.core.trace import Trace
from pybackup.formats.cluster_index import describe_drive
from pybackup.formats.vma_layout import CLUSTERS_PER_EXTENT, MAX_DRIVE_SIZE

from .block_status_map import BlockStatusMap
from .changes import DriveWay, ways_told
from .copying import Copying, Drive, Pending
from .job import DriveProgress, Job, with_estimate
from .trusted_changes import TrustedChanges

READ_CLUSTERS = CLUSTERS_PER_EXTENT
"""Clusters read at once: an extent's worth, 3.6 MiB, so that its frames need not be copied together."""
LIVE_READ_CLUSTERS = 8
"""Clusters read at once from a disk in use: a guest that writes to one of them waits for all."""
READ_AHEAD = 3
"""Pieces read ahead of the archive."""
SCAN_THREADS = 2
"""Threads of their own look for zeros and compute digests: in the pool that compresses, they would wait behind it."""
FREEZE_TIMEOUT = 10.0
"""Seconds that guests wait for writes under way to end, when a backup begins: Linux gives a disk 30 to answer."""
READS_A_SECOND = 20
"""A limited job reads pieces small enough that each second has so many, so that its speed is even."""


@dataclass(frozen=True, slots=True)
class GuestPolicy:
    """How guests' writes and the backup get along.

    ``buffer`` in bytes; ``timeout`` in seconds, after which a guest that waits for room stops to wait; None: never.
    """

    on_error: OnError = OnError.BREAK_BACKUP
    buffer: int = 64 << 20
    timeout: float | None = 30.0
    copy_on_read: bool = False


class BackupJob(Job):
    """Backs up drives into one archive.

    Fixed: drives, writer, pool, policies. Changing, in the event loop only: the copying state of each drive.
    """

    def __init__(
        self,
        drives: Sequence[Drive],
        writer: Intake,
        pool: ThreadPoolExecutor,
        *,
        about: dict[str, Any] | None = None,
        policy: GuestPolicy | None = None,
        old_data: OldData | None = None,
        skip_unreadable: bool = False,
        before_commit: Callable[[], Awaitable[None]] | None = None,
        filesystems: Stillness | None = None,
        speed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        trace: Trace | None = None,
    ) -> None:
        """``filesystems``: what freezes the guest's, for the instant at which drives in use are frozen."""
        super().__init__(speed=speed, clock=clock, trace=trace)
        self.lost = LostRanges()
        self._writer, self._pool = writer, pool
        self._about = about or {}
        self._policy = policy or GuestPolicy()
        self._old_data = old_data or OldData(self._policy.buffer)
        self._skip_unreadable, self._before_commit = skip_unreadable, before_commit
        self._filesystems = filesystems
        self._copying = [self._prepare(drive) for drive in drives]
        self.progress.drives = [copying.progress for copying in self._copying]
        self.frozen = asyncio.Event()
        self._armed: list[tuple[CopyBeforeWrite, GuestCopies]] = []

    def _prepare(self, drive: Drive) -> Copying:
        device = drive.device
        if device.size > MAX_DRIVE_SIZE:
            raise RequestError(f"drive {drive.name} has {device.size:,} bytes; archives hold drives of up to 256 TiB")
        source = device.child if isinstance(device, CopyBeforeWrite) else device
        progress = DriveProgress(drive.name, device.size, to_read=drive.allocated)
        claims = Claims(device.size)
        changes = TrustedChanges(drive.name, source, claims, self._writer, self.trace)
        return Copying(drive, source, claims, progress, changes)

    # -- the course of events --

    async def _work(self) -> None:
        try:
            await self._writer.start()
            await self._freeze()
            try:
                await self._copy_all()
            except BaseExceptionGroup as failures:
                # The first failure is the one that counts; the rest was cancelled because of it.
                raise failures.exceptions[0] from None
            self._let_guests_go()
            if self.error is not None:
                raise self.error
            await self._conclude()
        except TargetFullError as error:
            self.progress.written = self._writer.written
            raise with_estimate(error, self.progress) from error
        finally:
            self._let_guests_go()
            try:
                if not self._is_decided:
                    await self._writer.abort()
            finally:
                await self._end_freeze()

    async def _freeze(self) -> None:
        self._armed = [
            (copying.drive.device, self._make_guard(copying))
            for copying in self._copying
            if isinstance(copying.drive.device, CopyBeforeWrite)
        ]
        # Where there is no filter to arm, somebody else has taken the instant.
        async with self._filesystems.held() if self._filesystems and self._armed else contextlib.nullcontext():
            await freeze(self._armed, FREEZE_TIMEOUT)
        self.trace("job.freeze", drives=len(self._copying))
        self.frozen.set()

    async def _end_freeze(self) -> None:
        """Where the guest has not said that it is thawed, others ask on. A second time nothing happens."""
        if self._filesystems is not None:
            await uninterrupted(self._filesystems.close())

    def _make_guard(self, copying: Copying) -> GuestCopies:
        return GuestCopies(
            drive_id=copying.drive.drive_id,
            name=copying.drive.name,
            source=copying.source,
            claims=copying.claims,
            old_data=self._old_data,
            on_error=self._policy.on_error,
            timeout=self._policy.timeout,
            copy_on_read=self._policy.copy_on_read,
            charge=self.limit.charge,
            break_backup=self.fail,
            read_around=partial(self._read_around, copying) if self._skip_unreadable else None,
            trace=self.trace,
        )

    def _let_guests_go(self) -> None:
        """From now on no guest waits for this backup."""
        for device, guard in self._armed:
            device.disarm(guard)
        self._old_data.close()

    @property
    def stored(self) -> int:
        """Bytes of data put into the archive, before compression."""
        told = self._writer.stored
        return self.progress.stored if told is None else told

    @property
    def written(self) -> int:
        """Bytes of the archive."""
        return self._writer.written

    def fail(self, error: BaseException) -> None:
        """As for every job; guests go on at once, however long the cleaning up takes."""
        super().fail(error)
        if self.error is not None:
            self._let_guests_go()

    async def _abandon(self) -> None:
        await self._writer.abort()

    async def _copy_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(self._feed_old_data()),
                group.create_task(self._old_data.move_to_file()),
            ]
            for copying in self._copying:
                await copying.changes.begin(copying.drive.drive_id, copying.drive.changes, copying.drive.way)
                await self._copy_drive(copying)
            await self._settle_all()
            for helper in helpers:
                helper.cancel()

    async def _feed_old_data(self) -> None:
        by_id = {copying.drive.drive_id: copying for copying in self._copying}
        while not self._old_data.closed:
            batch = await self._old_data.take()
            pieces = [Piece(saved.drive_id, saved.first, saved.content) for saved in batch]
            ready = await self._writer.prepare(pieces, self._pool)
            for saved, prepared in zip(batch, ready, strict=True):
                by_id[saved.drive_id].count(prepared)
                await self._writer.take(saved.drive_id, saved.first, prepared)
            self.progress.written = self._writer.written
            self._old_data.release(batch)

    async def _settle_all(self) -> None:
        """Return when every cluster of every drive has reached the writer."""
        while True:
            for copying in self._copying:
                await copying.claims.wait_until_settled()
                if not copying.claims.is_finished:
                    await self._copy_drive(copying)
            await self._old_data.wait_until_empty()
            if all(copying.claims.is_finished for copying in self._copying):
                return

    async def _conclude(self) -> None:
        await self._end_freeze()
        for copying in self._copying:
            if copying.drive.check is not None:
                copying.drive.check()
        await self._writer.drain()  # what it tells about the archive counts all of it
        await self._writer.finish(self._describe())
        self.progress.written = self._writer.written
        if self._before_commit is not None:
            await self._before_commit()
        await self._decide(self._writer.commit)

    # -- the background loop --

    async def _copy_drive(self, copying: Copying) -> None:
        status = BlockStatusMap(copying.source)
        cluster: int | None = 0
        try:
            while (cluster := copying.claims.next_dirty(cluster or 0)) is not None:
                limit, may_have_changed = await copying.changes.run_at(cluster)
                if not may_have_changed:
                    await self._pass_over(copying, cluster, limit)
                    continue
                end, zero = await status.run_at(cluster)
                end = min(end, limit)
                if zero:
                    await self._copy_zeros(copying, cluster, end)
                else:
                    await self._copy_piece(copying, cluster, end)
            await self._emit(copying, 0)
        finally:
            await copying.drop_pending()

    async def _pass_over(self, copying: Copying, cluster: int, end: int) -> None:
        """Clusters that are known to be as the parent has them."""
        await self._unpaused()
        claimed = copying.claims.claim(cluster, end)
        if claimed is None:
            return
        first, count = claimed.start, claimed.end - claimed.start
        copying.claims.settle(claimed, copied=True)
        size = copying.bytes_of(first, claimed.end)
        copying.progress.done += size
        copying.progress.unchanged += size
        self.trace("copy.unchanged", drive=copying.drive.name, first=first, clusters=count)
        await self._writer.put_unchanged(copying.drive.drive_id, first, count)

    async def _copy_zeros(self, copying: Copying, cluster: int, end: int) -> None:
        await self._emit(copying, 0)
        await self._unpaused()
        claimed = copying.claims.claim(cluster, end)
        if claimed is None:
            return
        first, count = claimed.start, claimed.end - claimed.start
        copying.claims.settle(claimed, copied=True)
        size = copying.bytes_of(first, claimed.end)
        self.trace("copy.zero", drive=copying.drive.name, first=first, clusters=count)
        changed = await self._writer.put_zeros(copying.drive.drive_id, first, count)
        zero = min(size, changed * CLUSTER_SIZE)
        copying.progress.done += size
        copying.progress.zero += zero
        copying.progress.unchanged += size - zero
        self.progress.written = self._writer.written

    async def _copy_piece(self, copying: Copying, cluster: int, end: int) -> None:
        await self._emit(copying, READ_AHEAD - 1)
        await self._until_it_may_go_on()
        claimed = copying.claims.claim(cluster, min(end, cluster + self._piece(copying)))
        if claimed is None:
            return
        self.limit.charge(copying.bytes_of(claimed.start, claimed.end))
        task = asyncio.create_task(self._read(copying, claimed))
        task.add_done_callback(lambda _: copying.claims.abandon(claimed))
        copying.pending.append(Pending(claimed.start, task))

    def _piece(self, copying: Copying) -> int:
        most = LIVE_READ_CLUSTERS if copying.source is not copying.drive.device else READ_CLUSTERS
        if not self.limit.speed:
            return most
        return max(1, min(most, self.limit.speed // (READS_A_SECOND * CLUSTER_SIZE)))

    async def _read(self, copying: Copying, claimed: Range) -> Prepared:
        """Read, look for zeros, compute digests; the claim is settled as soon as the content is safe in memory."""
        copied = False
        try:
            offset = claimed.start * CLUSTER_SIZE
            size = copying.bytes_of(claimed.start, claimed.end)
            content = await self._read_content(copying, offset, size)
            copied = True
        finally:
            copying.claims.settle(claimed, copied=copied)
        piece = Piece(copying.drive.drive_id, claimed.start, content)
        (prepared,) = await self._writer.prepare([piece], self._pool)
        copying.progress.read += size
        self.trace("copy.read", drive=copying.drive.name, first=claimed.start, clusters=-(-size // CLUSTER_SIZE))
        return prepared

    async def _read_content(self, copying: Copying, offset: int, size: int) -> Any:
        try:
            return await copying.source.pread(offset, size)
        except OSError as error:
            if not self._skip_unreadable:
                raise SourceError(
                    f"cannot read drive {copying.drive.name} at byte {offset}: {error.strerror or error}",
                    advice=Advice.SKIP_UNREADABLE,
                ) from error
        return await self._read_around(copying, offset, size)

    async def _read_around(self, copying: Copying, offset: int, size: int) -> Buffer:
        """What can be read; the rest is noted as lost."""
        content, lost = await read_around_errors(copying.source, offset, size)
        for at, length in lost:
            self.trace("copy.unreadable", drive=copying.drive.name, offset=at, length=length)
            self.lost.add(copying.drive.name, at, length)
        return content

    async def _emit(self, copying: Copying, keep: int) -> None:
        """Pass on pieces, oldest first, until at most ``keep`` are pending."""
        while len(copying.pending) > keep:
            first, task = copying.pending[0]
            prepared = await task
            copying.pending.popleft()
            await self._old_data.wait_until_low()
            copying.count(prepared)
            await self._writer.take(copying.drive.drive_id, first, prepared)
            self.progress.written = self._writer.written

    # -- what is told about it --

    @property
    def consistency(self) -> dict[str, Any]:
        """The facts about the guest's filesystems at the instant, as far as they are known now; maybe none."""
        if self._filesystems is not None:
            return self._filesystems.facts()
        return {key: value for key, value in self._about.items() if key in CRASH}

    @property
    def ways(self) -> dict[str, DriveWay]:
        """How each drive came into the archive, by its name."""
        return {copying.drive.name: copying.changes.way for copying in self._copying}

    def _describe(self) -> dict[str, Any]:
        counts = self._writer.counts
        drives = [describe_drive(one.drive.drive_id, one.drive.name, one.claims.size, counts) for one in self._copying]
        about = {**self._about, **self.consistency, "drives": drives, "unreadable": self.lost.as_json()}
        return about | ways_told(self.ways)
