"""The course of a restore of a part of a drive: archive -> plan -> target -> job."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass

from pybackup.core.archive.chain import ParentSearch
from pybackup.core.archive.open_disks import open_disks
from pybackup.core.endpoints.open_targets import TargetOptions, open_target, refuse_own_archive
from pybackup.core.errors import RequestError
from pybackup.core.images.probe import suffix_format
from pybackup.core.jobs.restore_part import RestorePartJob
from pybackup.core.places.kinds import LocalPath, NbdUri, TargetPlace
from pybackup.core.sinks.stream import is_stream
from pybackup.core.trace import Trace
from pybackup.formats.vma import DriveInfo

from .listener import Listener
from .restore import RestoreRequest
from .restore_plan import RestorePlan, plan_restore


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a drive. ``length`` None: up to its end."""

    offset: int = 0
    length: int | None = None


@asynccontextmanager
async def restore_part(
    request: RestoreRequest, part: Part, *, listener: Listener | None = None, trace: Trace | None = None
) -> AsyncIterator[tuple[RestorePartJob, RestorePlan]]:
    """Within the body, a restore of a part that only needs to be run, and what goes where.

    Raises every PybackupError.
    """
    listener = listener or Listener()
    async with AsyncExitStack() as stack:
        archive = open_disks(request.archive, ParentSearch(request.parents))
        stack.push_async_callback(archive.close)
        stack.callback(archive.stop)
        plan = plan_restore(archive.header, target=request.target, places=request.places, drives=request.drives)
        if len(plan.drives) > 1:
            raise RequestError("a part is of one drive: choose one")
        refuse_own_archive(request.archive, plan.drives.values())
        [(drive, place)] = plan.drives.items()
        length = _length_of(part, drive)
        _check_target(place)
        target = open_target(
            place, TargetOptions("raw", request.replace), stack.enter_context(ExitStack()), listener.warn
        )
        yield (
            RestorePartJob(
                archive.drives[drive.name],
                target,
                name=drive.name,
                offset=part.offset,
                length=length,
                speed=request.speed,
                trace=trace,
            ),
            plan,
        )


def _length_of(part: Part, drive: DriveInfo) -> int:
    if part.offset >= drive.size:
        raise RequestError(f"drive {drive.name} has {drive.size:,} bytes, and none from {part.offset:,} on")
    length = drive.size - part.offset if part.length is None else part.length
    if part.offset + length > drive.size:
        raise RequestError(
            f"drive {drive.name} has {drive.size:,} bytes, and ends {part.offset + length - drive.size:,} bytes before"
            " that part does"
        )
    return length


def _check_target(place: TargetPlace) -> None:
    """A part is no disk (RequestError)."""
    if isinstance(place, NbdUri) or (isinstance(place, LocalPath) and _is_disk(place)):
        raise RequestError(f"a part of a drive is written to a new file, or to a stream, and {place} is neither")


def _is_disk(place: LocalPath) -> bool:
    if is_stream(place):
        return False
    is_other = os.path.exists(place.path) and not os.path.isfile(place.path)
    return is_other or suffix_format(place.path) is not None
