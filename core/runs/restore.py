"""The course of every restore: archive -> plan -> targets -> job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from pybackup.core.archive.by_index import DrivesByIndex, DrivesOfChain
from pybackup.core.archive.chain import ParentSearch
from pybackup.core.archive.drives import open_drives
from pybackup.core.archive.stream import ArchiveStream, Digests
from pybackup.core.endpoints.open_targets import TargetOptions, open_target, refuse_own_archive
from pybackup.core.endpoints.small_files import SmallFile
from pybackup.core.jobs.restore import RestoreJob
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace, TargetPlace
from pybackup.core.trace import Trace
from pybackup.formats.vma import DriveInfo, Header

from .listener import Listener
from .restore_plan import RestorePlan, plan_restore


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What is asked of a restore.

    ``target``: where everything goes, a folder, or what takes the only drive; or else ``places``, (drive's name, where
    that goes). ``drives``: the names of those that are wanted, all if there are none. ``image_format`` by QEMU's name,
    or raw; None: as each file's name says. ``replace``: files that exist, and what is on disks. ``with_configs``: the
    configurations go to the folder too. ``parents``: where else than beside it the ancestors of a delta may lie.
    ``skip_damaged``: save what can be saved. ``speed``: bytes a second, 0 for no limit.
    """

    archive: ArchivePlace
    target: TargetPlace | None = None
    places: Sequence[tuple[str, TargetPlace]] = ()
    drives: Sequence[str] = ()
    image_format: str | None = None
    replace: bool = False
    with_configs: bool = False
    skip_damaged: bool = False
    parents: Sequence[HistoryPlace] = ()
    threads: int = 1
    speed: int = 0


@contextmanager
def restore(
    request: RestoreRequest, *, listener: Listener | None = None, trace: Trace | None = None
) -> Iterator[tuple[RestoreJob, RestorePlan]]:
    """Within the body, a restore that only needs to be run, and what goes where; nothing stays open after it.

    Raises every PybackupError. Not in an event loop: the archive's beginning is read here.
    """

    def planned(header: Header) -> RestorePlan:
        return plan_restore(
            header,
            target=request.target,
            places=request.places,
            drives=request.drives,
            image_format=request.image_format,
            with_configs=request.with_configs,
            replace=request.replace,
        )

    listener = listener or Listener()
    with _open(request, lambda header: planned(header).drives) as stream, ExitStack() as stack:
        plan = planned(stream.header)
        refuse_own_archive(request.archive, plan.drives.values())
        options = TargetOptions(request.image_format, request.replace)
        targets = {drive: open_target(place, options, stack, listener.warn) for drive, place in plan.drives.items()}
        files = [SmallFile(path, content, replace=request.replace) for path, content in plan.configs]
        yield RestoreJob(stream, targets, files=files, speed=request.speed, trace=trace), plan


def _open(
    request: RestoreRequest, wanted: Callable[[Header], Iterable[DriveInfo]]
) -> AbstractContextManager[ArchiveStream | DrivesByIndex | DrivesOfChain]:
    """Only what is wanted is read, but of a damaged archive all: what its index says may be lost too."""
    return open_drives(
        request.archive,
        wanted,
        threads=request.threads,
        digests=Digests.UNPROVEN,
        search=ParentSearch(request.parents),
        tolerant=request.skip_damaged,
    )
