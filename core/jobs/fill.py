"""The job of a live restore: brings what no guest has asked for yet, so that in the end everything is there.

Guests come first: while one waits for a fetch, no new one begins here. Data comes before holes. What cannot be fetched
is passed over, and tried again when all else is there, more and more seldom: a store may come back, a guest may
overwrite what is damaged, and until then a guest that reads it is told EIO. Nothing but a disk that loses what is
written to it ends the job before all is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from itertools import count
from typing import Any

from pybackup.core.cow.copy_before_access import CLUSTERS_AT_ONCE, CopyBeforeAccess
from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.errors import ArchiveError, PybackupError, TargetError
from pybackup.core.tasks import beside, end, wait_until_at_most
from pybackup.core.trace import Trace

from .job import DriveProgress, Job

FETCHES = 4
"""Fetches under way: enough to hide a store's latency, few enough that a guest's own has not to wait for long."""
STATUS_BYTES = 1 << 30
"""Bytes of which the source is asked at once what they are."""
RECORD_EVERY = 10.0
"""Seconds after which what was brought is recorded: so much is fetched again after a power failure."""
MOST_TOLD = 20
"""Problems that are told."""
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds before what could not be fetched is tried again, at first and at last."""


class FillJob(Job):
    """Fills disks.

    Fixed: the disks. Changing: ``problem``, what was told last of what cannot be fetched, and ``problems``, how often.
    """

    def __init__(
        self,
        disks: dict[str, CopyBeforeAccess],
        *,
        speed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        trace: Trace | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``disks`` by their drives' names. ``tell`` gets a sentence for every new problem."""
        super().__init__(speed=speed, clock=clock, trace=trace)
        self.disks = dict(disks)
        self._tell = tell
        self.problem: str | None = None
        self.problems = 0
        self._told: set[str] = set()
        self._fetching: set[asyncio.Task[None]] = set()
        for disk in disks.values():
            disk.charge = self.limit.charge
        self.progress.drives = [DriveProgress(name, disk.size) for name, disk in disks.items()]
        self.count()

    def count(self) -> None:
        """Bring the progress up to date: guests bring what they need themselves."""
        for drive, disk in zip(self.progress.drives, self.disks.values(), strict=True):
            drive.done = disk.size - disk.left

    @property
    def is_whole(self) -> bool:
        """Whether all is there."""
        return all(disk.is_whole for disk in self.disks.values())

    async def _work(self) -> None:
        async with beside(self._record_now_and_then()):
            try:
                await self._fill_all()
            finally:
                await end(self._fetching)
                self._fetching.clear()
        await self._finish()
        self.count()

    async def _fill_all(self) -> None:
        delay = FIRST_RETRY
        while not self.is_whole:
            before = self._left()
            for zeros in (False, True):
                for disk in self.disks.values():
                    await self._fill(disk, zeros=zeros)
            if self.is_whole or await self._others_are_at_it():
                continue
            delay = FIRST_RETRY if self._left() < before else min(LAST_RETRY, 2 * delay)
            await asyncio.sleep(delay)

    def _left(self) -> int:
        return sum(disk.left for disk in self.disks.values())

    async def _others_are_at_it(self) -> bool:
        """Whether all that was left was in guests' hands, which has an end."""
        if any(disk.claims.next_dirty(0) is not None for disk in self.disks.values()):
            return False
        for disk in self.disks.values():
            await disk.claims.wait_until_settled()
        return True

    async def _fill(self, disk: CopyBeforeAccess, *, zeros: bool) -> None:
        """One pass over what is not there."""
        async for first, end_of_run, zero in self._missing(disk):
            if zero and zeros:
                await self._may_go_on(disk)
                await self._tried(disk.bring_zeros(first, end_of_run))
            elif not zero and not zeros:
                for at in range(first, end_of_run, CLUSTERS_AT_ONCE):
                    behind = min(end_of_run, at + CLUSTERS_AT_ONCE)
                    await self._may_go_on(disk)
                    self._fetching.add(asyncio.create_task(self._bring(disk, at, behind)))
                    await wait_until_at_most(self._fetching, FETCHES - 1)
        await wait_until_at_most(self._fetching, 0)

    async def _may_go_on(self, disk: CopyBeforeAccess) -> None:
        """Return when neither a guest, nor the limit, nor a pause is in the way; what is fetched charges itself."""
        await disk.nobody_waits()
        await self._until_it_may_go_on()

    async def _missing(self, disk: CopyBeforeAccess) -> AsyncIterator[tuple[int, int, bool]]:
        """(first, end, whether they are zero) of the clusters that nobody has brought, once over the disk."""
        at: int | None = 0
        while at is not None and (at := disk.claims.next_dirty(at)) is not None:
            offset = at * CLUSTER_SIZE
            at = None if offset + STATUS_BYTES >= disk.size else at + STATUS_BYTES // CLUSTER_SIZE
            async for found in self._told_by(disk, offset, min(STATUS_BYTES, disk.size - offset)):
                yield found

    async def _told_by(self, disk: CopyBeforeAccess, offset: int, length: int) -> AsyncIterator[tuple[int, int, bool]]:
        behind = offset + length
        while offset < behind:
            try:
                found = await disk.source.extents(offset, behind - offset)
            except (OSError, PybackupError) as error:
                self._note_problem(error)
                return
            for status in found:
                low, high = status.offset // CLUSTER_SIZE, -(-min(status.end, behind) // CLUSTER_SIZE)
                if disk.claims.is_dirty(low, high):
                    yield low, high, status.zero
            offset = found[-1].end

    async def _bring(self, disk: CopyBeforeAccess, first: int, behind: int) -> None:
        """Fetch these clusters; where some are damaged, each alone, so that nothing is given up that need not be."""
        try:
            await disk.bring(first, behind)
        except (OSError, PybackupError) as error:
            if not _is_damage(error):
                self._note_problem(error)
                return
            for cluster in range(first, behind):
                await self._tried(disk.bring(cluster, cluster + 1))

    async def _tried(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (OSError, PybackupError) as error:
            self._note_problem(error)

    def _note_problem(self, error: OSError | PybackupError) -> None:
        """Remember a problem, and tell it if it is new."""
        sentence = _sentence(error)
        self.problem = sentence
        self.problems += 1
        if sentence not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(sentence)
            self._tell(f"{sentence}; what cannot be fetched is tried again")

    # -- what is durable --

    async def _record_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(RECORD_EVERY)
            for disk in self.disks.values():
                if disk.has_unrecorded or disk.failure is not None:
                    await self._flush(disk)

    async def _flush(self, disk: CopyBeforeAccess) -> bool:
        """Record what is there; whether that succeeded. A disk that loses what is written to it ends the job."""
        try:
            await disk.flush()
            return True
        except (OSError, PybackupError) as error:
            if disk.failure is not None:
                self.fail(TargetError(f"{disk.name} lost what was written to it: {_sentence(disk.failure)}"))
            self._note_problem(error)
            return False

    async def _finish(self) -> None:
        """All is there: no map goes before every one of them says so."""
        for step in (self._flush, self._give_up_record):
            for disk in self.disks.values():
                await _until_done(step, disk)

    async def _give_up_record(self, disk: CopyBeforeAccess) -> bool:
        try:
            await disk.finish()
            return True
        except OSError as error:
            self._note_problem(error)
            return False


async def _until_done(step: Callable[[CopyBeforeAccess], Awaitable[bool]], disk: CopyBeforeAccess) -> None:
    for _ in count():
        if await step(disk):
            return
        await asyncio.sleep(RECORD_EVERY)


def _sentence(error: OSError | PybackupError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _is_damage(error: BaseException) -> bool:
    """Whether the archive could be read, and does not hold what it should: not so a store that does not answer."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ArchiveError):
            return not isinstance(found.__cause__, OSError)
        found = found.__cause__
    return False
