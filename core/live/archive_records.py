"""What a server knows of its drives' changes since each of the last archives that were made of them.

An archive is known from the moment on at which whoever wrote it says that it is durable; until then, and where there
never is one, all that was known of those before it stays right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pybackup.core.archive.identity import Reference
from pybackup.core.cow.changed_clusters import PieceRoom, Union
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.cow.drive_record import DriveRecord
from pybackup.core.jobs.changes import BY_DIGEST, BY_SERVER, DriveWay

MOST_ARCHIVES = 8
"""Archives whose changes are remembered: so many backups of different kinds may be made of one server."""
ASKED_AT_ONCE = 64
"""Questions that are answered before others have their turn: about 0.2 ms."""

SHARED = "others may write to the disk too, past the server"
UNKNOWN = "the server knows no changes since that archive: it was started later, or was not told that it is complete"


@dataclass(frozen=True, slots=True)
class Base:
    """The archive that a delta is to be made of: its uuid, and the directories' digests by which it may be known."""

    uuid: bytes
    digests: frozenset[bytes]

    def is_answered_by(self, reference: Reference) -> bool:
        """Whether it is this archive, under one of its names."""
        return reference.uuid == self.uuid and reference.digest in self.digests


@dataclass(slots=True)
class _Known:
    """An archive. ``used``: when it was made, or last was a base, counted in backups; ``is_base``: whether it was."""

    reference: Reference
    used: int
    is_base: bool = False


class KnownChanges:
    """A ChangeMap: what guests have changed of a drive, as the server has seen it.

    Fixed: what that is. Changing: how often it was asked.
    """

    way = BY_SERVER

    def __init__(self, changed: Union) -> None:
        self._changed, self._asked = changed, 0

    async def run_at(self, cluster: int) -> tuple[int, bool]:
        """(end, may have changed): clusters [cluster, end) are alike.

        Who asks for one run after the other of millions lets guests have their turn.
        """
        self._asked += 1
        if not self._asked % ASKED_AT_ONCE:
            await asyncio.sleep(0)
        return self._changed.run_at(cluster)


class ArchiveRecords:
    """The records of all drives of a server, and which archives they are about.

    Fixed: the drives' records. Changing, in the event loop only: the archives that are known, and how many backups were
    made.
    """

    def __init__(self, drives: Mapping[str, CopyBeforeWrite], shared: Collection[str] = ()) -> None:
        """The drives get their records here, but those, by their names, that others may write to beside us."""
        self._room = PieceRoom(make_room=self._make_room)
        self._records: dict[str, DriveRecord] = {}
        self._known: list[_Known] = []
        self._backups = 0
        for name, device in drives.items():
            if name not in shared:
                self._records[name] = device.record = DriveRecord(device.size, self._room)

    def _make_room(self) -> None:
        """What is known since the oldest archives becomes coarser first."""
        for age in range(MOST_ARCHIVES + 2):
            if sum(record.coarsen(age) for record in self._records.values()):
                return

    # -- a backup --

    def changes(self, name: str, base: Base | None) -> tuple[KnownChanges | None, DriveWay]:
        """What is known of a drive's changes since the base, and the way of the drive without it."""
        if base is None:
            return None, DriveWay()
        known = self._find(base)
        record = self._records.get(name)
        if record is None:
            return None, DriveWay(BY_DIGEST, SHARED)
        changed = None if known is None else record.since(known.reference)
        if changed is None:
            return None, DriveWay(BY_DIGEST, UNKNOWN)
        return KnownChanges(changed), DriveWay(BY_DIGEST)

    def _find(self, base: Base) -> _Known | None:
        return next((known for known in self._known if base.is_answered_by(known.reference)), None)

    def settle(self, archive: Reference | None, base: Base | None) -> None:
        """A backup has ended: the archive that came of it, None where there is none, or where none can be told."""
        if archive is not None:
            self._backups += 1
            self._forget(archive)
            if base is not None and (known := self._find(base)) is not None:
                known.used, known.is_base = self._backups, True
            self._known.append(_Known(archive, self._backups))
        for record in self._records.values():
            record.settle(archive)
        while len(self._known) > MOST_ARCHIVES:
            self._forget(self._least_wanted().reference)

    def _least_wanted(self) -> _Known:
        """The archive that will probably be no base again: one that has a delta, but not the last that was asked for.

        A chain goes on from its end, and a job that makes every delta of the same archive has just asked for it.
        """
        done_with = [known for known in self._known if known.is_base and known.used < self._backups]
        return min(done_with or self._known, key=lambda known: known.used)

    def _forget(self, archive: Reference) -> None:
        self._known = [known for known in self._known if known.reference != archive]
        for record in self._records.values():
            record.forget(archive)

    def mark(self, name: str, offset: int, length: int) -> None:
        """These bytes are not what the archive being made says, though nobody has changed them."""
        if (record := self._records.get(name)) is not None:
            record.mark(offset, length)

    # -- telling --

    def changed_bytes(self, name: str) -> int | None:
        """Bytes of the clusters of a drive that were changed since the last archive; None where there is none."""
        record = self._records.get(name)
        changed = None if record is None or not self._known else record.all_since(self._known[-1].reference)
        return None if changed is None else changed.size

    def as_json(self) -> list[dict[str, Any]]:
        """The archives of which deltas can be made quickly, the newest first."""
        return [{"uuid": str(UUID(bytes=known.reference.uuid))} for known in reversed(self._known)]
