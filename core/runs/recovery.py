"""The course of a live restore: archive -> plan -> disks that fill while they are used -> job."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from pybackup.core.archive.chain import ParentSearch
from pybackup.core.archive.open_disks import ArchiveDisks, open_disks
from pybackup.core.cow.copy_before_access import CopyBeforeAccess
from pybackup.core.device import BlockDevice
from pybackup.core.endpoints.filled_targets import FilledTarget, FillOptions, open_filled
from pybackup.core.endpoints.open_targets import refuse_own_archive
from pybackup.core.errors import TargetError
from pybackup.core.jobs.fill import FillJob
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace, TargetPlace
from pybackup.core.trace import Trace

from .restore_plan import plan_restore


@dataclass(frozen=True, slots=True)
class RecoveryRequest:
    """What is asked of a live restore: the fields of a RestoreRequest, and of FillOptions."""

    archive: ArchivePlace
    target: TargetPlace | None = None
    places: Sequence[tuple[str, TargetPlace]] = ()
    drives: Sequence[str] = ()
    replace: bool = False
    map_path: str | None = None
    keeps_reads: bool = True
    speed: int = 0
    parents: Sequence[HistoryPlace] = ()


@dataclass(frozen=True, slots=True)
class Recovery:
    """A live restore, open: its disks by their drives' names, and the job that fills them.

    stop() makes reads of the archive fail that wait, when nobody wants them any more.
    """

    targets: dict[str, FilledTarget]
    job: FillJob
    stop: Callable[[], None]


@asynccontextmanager
async def recover(
    request: RecoveryRequest, *, warn: Callable[[str], None] = lambda _: None, trace: Trace | None = None
) -> AsyncIterator[Recovery]:
    """Within the body, disks that can be used, and a job that is to be run; nothing stays open after it.

    All that was written is made durable in the end, and recorded (TargetError where it cannot be). Raises every
    PybackupError.
    """
    async with AsyncExitStack() as stack:
        archive = open_disks(request.archive, ParentSearch(request.parents), held=True)
        stack.push_async_callback(archive.close)
        plan = plan_restore(archive.header, target=request.target, places=request.places, drives=request.drives)
        refuse_own_archive(request.archive, plan.drives.values())
        options = FillOptions(request.replace, request.map_path, request.keeps_reads)
        targets = await open_filled(plan.drives, _sources(archive), archive.identity, options, stack, warn)
        job = FillJob({name: one.device for name, one in targets.items()}, speed=request.speed, trace=trace, tell=warn)
        for target in targets.values():
            stack.push_async_callback(_leave, target.device, job)
        yield Recovery(targets, job, archive.stop)


def _sources(archive: ArchiveDisks) -> dict[str, BlockDevice]:
    return dict(archive.drives)


async def _leave(device: CopyBeforeAccess, job: FillJob) -> None:
    try:
        await device.flush()
    except OSError as error:
        if job.error is None or device.failure is None:  # else it is known
            raise TargetError(f"cannot finish {device.name}: {error.strerror or error}") from error
