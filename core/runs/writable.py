"""An archive whose drives can be written to: what is written goes to an overlay, and the archive stays as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from pybackup.core.archive.chain import ParentSearch
from pybackup.core.archive.open_disks import open_disks
from pybackup.core.cow.copy_before_access import CopyBeforeAccess
from pybackup.core.devices.dropped import DroppedDisk
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace, LocalPath

from .recovery import RecoveryRequest, recover


@dataclass(frozen=True, slots=True)
class WritableRequest:
    """What is asked. ``overlay``: a file, or for several drives a folder, that keeps what is written; else it goes to
    unnamed files in ``folder``, which are gone afterwards. ``parents``: as for a restore."""

    archive: ArchivePlace
    folder: str
    overlay: LocalPath | None = None
    parents: Sequence[HistoryPlace] = ()


@asynccontextmanager
async def writable(
    request: WritableRequest, *, warn: Callable[[str], None] = lambda _: None
) -> AsyncIterator[tuple[dict[str, CopyBeforeAccess], Callable[[], None]]]:
    """Within the body, the archive's drives by their names, to be read and written. Raises every PybackupError.

    The other one is to be called in the end, before the drives' users are waited for: it fails reads that wait for a
    store.

    What an overlay keeps is a restore that was begun: a live restore to it brings the rest.
    """
    if request.overlay is not None:
        wanted = RecoveryRequest(request.archive, request.overlay, keeps_reads=False, parents=request.parents)
        async with recover(wanted, warn=warn) as recovery:
            yield {name: target.device for name, target in recovery.targets.items()}, recovery.stop
        return
    async with AsyncExitStack() as stack:
        archive = open_disks(request.archive, ParentSearch(request.parents))
        stack.push_async_callback(archive.close)
        stack.callback(archive.stop)
        disks = {}
        for name, drive in archive.drives.items():
            overlay = DroppedDisk.make(request.folder, drive.size, drive.name)
            stack.push_async_callback(overlay.close)
            disks[name] = CopyBeforeAccess(overlay, drive, is_new=True, keeps_reads=False)
        yield disks, archive.stop
