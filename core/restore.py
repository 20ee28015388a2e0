"""The restore job: an archive's drives, written to their targets."""

from __future__ import annotations

import asyncio
from typing import Any

from pybackup.formats.vma import DriveInfo

from .archive_stream import CheckedExtent
from .archive_walk import ArchiveWalk, Extents, runs_of
from .pending_tasks import wait_until_at_most
from .restore_targets import Piece, RestoreTarget, cut

WRITES_AHEAD = 8


class RestoreJob(ArchiveWalk):
    """Restores some drives. Fixed: their targets. Changing: the writes under way."""

    def __init__(self, stream: Extents, targets: dict[DriveInfo, RestoreTarget], **options: Any) -> None:
        super().__init__(stream, list(targets), **options)
        self._targets = {drive.drive_id: target for drive, target in targets.items()}
        self._whole = {drive_id for drive_id, target in self._targets.items() if not target.keeps_small_holes}
        self._writes: set[asyncio.Task[None]] = set()

    async def _work(self) -> None:
        begun: list[RestoreTarget] = []
        committed: list[RestoreTarget] = []
        try:
            for drive_id, target in self._targets.items():
                begun.append(target)
                await target.begin(self.drives[drive_id].size)
            await self._walk()
            await wait_until_at_most(self._writes, 0)
            for target in begun:
                await target.commit()
                committed.append(target)
        finally:
            await self._drop_writes()
            for target in begun:
                if target not in committed:
                    await target.abort()

    async def _take(self, checked: CheckedExtent) -> None:
        pieces: dict[int, list[Piece]] = {}
        for run in runs_of(checked.extent, self._whole):
            target = self._targets.get(run.drive_id)
            if target is None:
                continue
            length = min(run.length, self.drives[run.drive_id].size - run.offset)
            if run.buffers is not None:
                piece = run.offset, cut(run.buffers, run.length - length)
                pieces.setdefault(run.drive_id, []).append(piece)
            elif target.wants_zeros and length > 0:
                self._write(target.zeros(run.offset, length))
        for drive_id, some in pieces.items():
            self._write(self._targets[drive_id].write(some))
        await wait_until_at_most(self._writes, WRITES_AHEAD)

    def _write(self, write: Any) -> None:
        self._writes.add(asyncio.ensure_future(write))

    async def _drop_writes(self) -> None:
        for write in self._writes:
            write.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)
        self._writes.clear()
