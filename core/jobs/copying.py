"""A drive, and how far the copying of it is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pybackup.core.archive.intake import Prepared
from pybackup.core.cow.claims import Claims
from pybackup.core.device import CLUSTER_SIZE, BlockDevice
from pybackup.core.tasks import end

from .changes import ChangeMap, DriveWay
from .job import DriveProgress
from .trusted_changes import TrustedChanges


@dataclass(slots=True)
class Drive:
    """A drive to back up: its id in the archive, its name, and its device, a CopyBeforeWrite if it is in use."""

    drive_id: int
    name: str
    device: BlockDevice
    check: Callable[[], None] | None = None
    """Called when everything was read; raises if the source changed meanwhile."""
    allocated: int | None = None
    """Bytes that are no holes, about, where that is known."""
    changes: ChangeMap | None = None
    """What may have changed since the parent of a delta; set until the drives are frozen."""
    way: DriveWay = field(default_factory=DriveWay)


class Pending(NamedTuple):
    """A piece that is being read: its first cluster and the task that reads it."""

    first: int
    prepared: asyncio.Task[Prepared]


@dataclass(slots=True)
class Copying:
    """A drive while it is copied. Changing, by the job: all but the drive and its claims."""

    drive: Drive
    source: BlockDevice
    claims: Claims
    progress: DriveProgress
    changes: TrustedChanges
    pending: deque[Pending] = field(default_factory=deque)

    def count(self, prepared: Prepared) -> None:
        """These clusters are on their way into the archive."""
        self.progress.done += len(prepared.content)
        self.progress.zero += prepared.zero
        self.progress.unchanged += prepared.unchanged

    def bytes_of(self, first: int, end: int) -> int:
        """Bytes of clusters [first, end); the last cluster of a drive may be partial."""
        return min(end * CLUSTER_SIZE, self.claims.size) - first * CLUSTER_SIZE

    async def drop_pending(self) -> None:
        """End what is being read."""
        await end(pending.prepared for pending in self.pending)
        self.pending.clear()
