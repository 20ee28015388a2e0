"""Disks in use: devices behind copy-before-write filters, and at most one backup of them at a time."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pybackup.core.archive.identity import Reference
from pybackup.core.archive.intake import Intake
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.cow.fleece_file import FleeceFile, FleecePlace
from pybackup.core.cow.old_data import LEAST_BESIDE_FILE, OldData
from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.errors import BusyError, CancelledError, PybackupError, RequestError
from pybackup.core.guest.consistency import CRASH, consistency_of
from pybackup.core.guest.filesystem_freeze import AgentOptions, FilesystemFreeze
from pybackup.core.jobs.backup import BackupJob, GuestPolicy
from pybackup.core.jobs.changes import ways_told
from pybackup.core.jobs.copying import Drive
from pybackup.core.jobs.job import Job, State
from pybackup.core.system.allocator import give_back_freed_memory

from .archive_records import ArchiveRecords, Base

MOST_TOLD = 100
"""Unreadable places in a report; the archive lists all."""


TIDY_AFTER = 1.0
"""Seconds after a backup, when nothing refers to its data any more."""


def _tidy() -> None:
    """Give back what a backup has left.

    70 cancelled ones left 30 MiB: an error and the frames that it has come through refer to each other and to data, and
    Python looks for such rings seldom where little is allocated; and glibc keeps what is freed. It takes about 10 ms.
    """
    gc.collect()
    give_back_freed_memory()


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """What a client may ask of a backup. ``speed`` in bytes a second, 0 for no limit.

    ``uuid``: of the archive that is made, where deltas of it can be made later. ``base``: the archive of which it is to
    be a delta.
    """

    speed: int = 0
    skip_unreadable: bool = False
    uuid: bytes | None = None
    base: Base | None = None


class LiveServer:
    """The drives of one server, and the backup of all of them.

    Fixed: drives, labels, policy, where to fleece, agent, tool. Changing, in the event loop only: the job, the last
    one's outcome, and what is known of changes since earlier archives.
    """

    def __init__(
        self,
        drives: Mapping[str, CopyBeforeWrite],
        *,
        policy: GuestPolicy,
        tool: str,
        labels: Mapping[str, str] | None = None,
        shared: Collection[str] = (),
        fleece: FleecePlace | None = None,
        agent: AgentOptions | None = None,
        tell: Callable[[str], None] = lambda _: None,
        in_words: Callable[[BaseException], str] = str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``labels``: what the archive tells of where each drive comes from, by its name; else that is the name.

        ``shared``: the drives that others may write to, past us.
        ``agent``: of the guest that uses the drives; ``tell`` is called with sentences about a guest that hangs.
        ``in_words``: what clients are told of an error.
        """
        self.drives = dict(drives)
        self._labels = {**{name: name for name in drives}, **(labels or {})}
        self._policy, self._tool, self._clock = policy, tool, clock
        self._fleece = fleece
        self._agent, self._tell, self.in_words = agent, tell, in_words
        self._records = ArchiveRecords(self.drives, shared)
        self.job: BackupJob | None = None
        self.last: dict[str, Any] | None = None
        self._finished = asyncio.Event()
        self._finished.set()

    @property
    def is_busy(self) -> bool:
        """Whether a backup runs."""
        return not self._finished.is_set()

    async def backup(self, request: BackupRequest, intake: Intake) -> BackupJob:
        """Run a backup of all drives to its end; the job, or the first error.

        BusyError if one is running already; then the intake is left alone.
        """
        if self.is_busy:
            raise BusyError("a backup of these disks is running already")
        self._finished.clear()
        fleece = None
        try:
            fleece = self._open_fleece()
            return await self._run(request, intake, fleece)
        finally:
            self.job = None
            self._finished.set()
            if fleece is not None:
                await fleece.close()
            asyncio.get_running_loop().call_later(TIDY_AFTER, _tidy)

    async def _run(self, request: BackupRequest, intake: Intake, fleece: FleeceFile | None) -> BackupJob:
        with ThreadPoolExecutor(1, thread_name_prefix="pybackup-scan") as pool:
            self.job = job = BackupJob(
                self._drives_for(request.base),
                intake,
                pool,
                about={
                    "tool": self._tool,
                    "created": int(self._clock()),
                    "sources": [{"name": self._labels[name], "kind": "live"} for name in self.drives],
                    **CRASH,
                },
                policy=self._policy,
                old_data=self._old_data(fleece),
                skip_unreadable=request.skip_unreadable,
                filesystems=None if self._agent is None else FilesystemFreeze(self._agent, self._tell),
                speed=request.speed,
            )
            archive: Reference | None = None
            try:
                await job.run()
                archive = self._made(job, request, intake)
            finally:
                self._records.settle(archive, request.base)
                self.last = self.describe(job)
            return job

    def _drives_for(self, base: Base | None) -> list[Drive]:
        drives = []
        for number, (name, device) in enumerate(self.drives.items(), 1):
            changes, way = self._records.changes(name, base)
            drives.append(Drive(number, name, device, changes=changes, way=way))
        return drives

    def _made(self, job: BackupJob, request: BackupRequest, intake: Intake) -> Reference | None:
        """The archive that came of a job, if a delta of it can be made; what it lost is read again then."""
        if request.uuid is None or intake.digest is None:
            return None
        for one in job.lost:
            self._records.mark(one.drive, one.offset, one.length)
        return Reference(request.uuid, intake.digest)

    def _open_fleece(self) -> FleeceFile | None:
        if self._fleece is None:
            return None
        # No cluster is saved twice.
        return self._fleece.open(sum(-(-one.size // CLUSTER_SIZE) * CLUSTER_SIZE for one in self.drives.values()))

    def _old_data(self, fleece: FleeceFile | None) -> OldData:
        buffer = self._policy.buffer
        return OldData(buffer) if fleece is None else OldData(max(buffer, LEAST_BESIDE_FILE), fleece)

    # -- steering --

    def running(self) -> Job:
        """The job that runs, or RequestError."""
        if self.job is None:
            raise RequestError("no backup is running")
        return self.job

    async def cancel(self, reason: PybackupError | None = None) -> None:
        """End what runs, because of ``reason`` or because somebody wants it, and return when it has ended."""
        if self.job is not None:
            self.job.fail(reason or CancelledError())
        await self._finished.wait()

    # -- telling --

    def describe(self, job: BackupJob) -> dict[str, Any]:
        """A job's state and progress; bytes and seconds."""
        progress = job.progress
        error = job.error
        return {
            "state": str(job.state),
            "size": progress.size,
            "done": progress.done,
            "zero": progress.zero,
            "stored": job.stored,
            "written": job.written,
            "speed": job.limit.speed,
            "seconds": round(job.elapsed, 3),
            "drives": [
                {"name": one.name, "size": one.size, "done": one.done, "zero": one.zero, "read": one.read}
                for one in progress.drives
            ],
            **ways_told(job.ways),
            "unreadable": [one.as_json() for one in islice(job.lost, MOST_TOLD)],
            "unreadable_bytes": job.lost.lost,
            **consistency_of(job.consistency),
            "error": None if error is None else self.in_words(error),
            "exit_code": exit_code_of(error) if job.state is State.CONCLUDED else None,
        }

    def status(self) -> dict[str, Any]:
        """What there is to monitor."""
        return {
            "drives": [
                {
                    "name": name,
                    "size": device.size,
                    "read_only": device.read_only,
                    "armed": device.is_armed,
                    "changed": self._records.changed_bytes(name),
                }
                for name, device in self.drives.items()
            ],
            "archives": self._records.as_json(),
            "job": None if self.job is None else self.describe(self.job),
            "last": self.last,
        }


def exit_code_of(error: BaseException | None) -> int:
    """The exit code that stands for an error."""
    if error is None:
        return 0
    return int(error.exit_code) if isinstance(error, PybackupError) else 1
