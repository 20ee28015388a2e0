"""The restore job: an archive's drives, written to their targets."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from pybackup.core.archive.checked_extent import CheckedExtent
from pybackup.core.endpoints.small_files import SmallFile
from pybackup.core.endpoints.targets import Piece, RestoreTarget, cut
from pybackup.core.errors import PybackupError
from pybackup.core.tasks import end, see_through, wait_until_at_most
from pybackup.core.trace import Trace
from pybackup.formats.vma import DriveInfo

from .walk import ArchiveWalk, Extents, runs_of

WRITES_AHEAD = 6


class RestoreJob(ArchiveWalk):
    """Restores some drives, and writes small files beside them.

    Fixed: the targets. Changing: the writes under way, and the targets that have their names.
    """

    def __init__(
        self,
        stream: Extents,
        targets: dict[DriveInfo, RestoreTarget],
        *,
        files: Sequence[SmallFile] = (),
        speed: int = 0,
        trace: Trace | None = None,
    ) -> None:
        super().__init__(stream, list(targets), speed=speed, trace=trace)
        self._targets = {drive.drive_id: target for drive, target in targets.items()}
        self._whole = {drive_id for drive_id, target in self._targets.items() if not target.keeps_small_holes}
        self._files = files
        self._writes: set[asyncio.Task[None]] = set()
        self._begun: list[RestoreTarget | SmallFile] = []
        self._done: list[RestoreTarget | SmallFile] = []

    async def run(self) -> None:
        """As for every job; a failure also tells what is left under which name, and what is complete."""
        try:
            await super().run()
        except PybackupError as error:
            left = [target.left for target in self._begun if target.left is not None]
            complete = [f"{target.name} is complete" for target in self._done]
            error.args = ("; ".join([str(error), *left, *complete]), *error.args[1:])
            raise

    async def _work(self) -> None:
        try:
            await self._begin_all()
            await self._walk()
            await wait_until_at_most(self._writes, 0)
            for target in self._begun:
                await target.sync()
            await self._decide(self._take_names)
        finally:
            await self._drop_writes()
            for target in self._begun:
                if target not in self._done:
                    await target.abort()

    async def _begin_all(self) -> None:
        for drive_id, target in self._targets.items():
            self._begun.append(target)
            await target.begin(self.drives[drive_id].size)
        for file in self._files:
            self._begun.append(file)
            await file.begin()

    async def _take_names(self) -> None:
        """All or none get their names, as far as that is in our hands: who cancels now is too late."""
        taking = asyncio.create_task(self._commit_all())
        await see_through(taking)
        taking.result()

    async def _commit_all(self) -> None:
        for target in self._begun:
            await target.commit()
            self._done.append(target)

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

    def _write(self, write: Coroutine[Any, Any, None]) -> None:
        self._writes.add(asyncio.create_task(write))

    async def _drop_writes(self) -> None:
        await end(self._writes)
        self._writes.clear()
