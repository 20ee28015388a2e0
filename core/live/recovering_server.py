"""A server whose disks are still being restored: what fills them is steered first, and then backups of them are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pybackup.core.archive.intake import Intake
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.errors import BusyError, CancelledError, PybackupError, RequestError
from pybackup.core.jobs.backup import BackupJob, GuestPolicy
from pybackup.core.jobs.fill import FillJob
from pybackup.core.jobs.job import Job, State

from .server import BackupRequest, LiveServer, exit_code_of


class RecoveringServer(LiveServer):
    """The drives of a live restore. Fixed: the job that fills them, which the caller runs."""

    def __init__(
        self,
        fill: FillJob,
        *,
        tool: str,
        tell: Callable[[str], None] = lambda _: None,
        in_words: Callable[[BaseException], str] = str,
    ) -> None:
        """As of every LiveServer."""
        drives = {name: CopyBeforeWrite(disk) for name, disk in fill.disks.items()}
        super().__init__(drives, policy=GuestPolicy(), tool=tool, tell=tell, in_words=in_words)
        self._fill = fill

    @property
    def _is_filling(self) -> bool:
        return self._fill.state is not State.CONCLUDED

    async def backup(self, request: BackupRequest, intake: Intake) -> BackupJob:
        """Once all is there."""
        if self._is_filling:
            raise BusyError("these disks are still being restored; they can be backed up when all is there")
        return await super().backup(request, intake)

    def running(self) -> Job:
        """What fills the disks, as long as it does."""
        return self._fill if self._is_filling else super().running()

    async def cancel(self, reason: PybackupError | None = None) -> None:
        """As for a backup; a restore is not cancelled by a client."""
        if self._is_filling and isinstance(reason, CancelledError):
            raise RequestError("a restore is not cancelled: pause holds it, and quit ends the server")
        await super().cancel(reason)

    def status(self) -> dict[str, Any]:
        """What there is to monitor."""
        return {**super().status(), "restore": self.describe_fill()}

    def describe_fill(self) -> dict[str, Any]:
        """The state of the restore; bytes and seconds."""
        fill = self._fill
        fill.count()
        return {
            "state": str(fill.state),
            "size": fill.progress.size,
            "done": fill.progress.done,
            "speed": fill.limit.speed,
            "seconds": round(fill.elapsed, 3),
            "drives": [{"name": one.name, "size": one.size, "done": one.done} for one in fill.progress.drives],
            "problem": fill.problem,
            "problems": fill.problems,
            "error": None if fill.error is None else self.in_words(fill.error),
            "exit_code": exit_code_of(fill.error) if fill.state is State.CONCLUDED else None,
        }
