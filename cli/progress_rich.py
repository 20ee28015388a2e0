"""Progress on a terminal, by rich: one line a drive, and a total where there are several."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from pybackup.cli.numbers import percent, short
from pybackup.core.job import DriveProgress, Job, State

WIDE = 100
"""Columns of a terminal on which one line has room for all notes."""


class _Bytes(ProgressColumn):
    """Done of size."""

    def render(self, task: Task) -> Text:
        return Text(f"{short(task.completed)} of {short(task.total or 0)}", style="progress.download")


class _Rate(ProgressColumn):
    """Bytes a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{short(speed)}/s" if speed else "", style="progress.data.speed")


def make_progress(console: Console) -> Progress:
    """The columns: name, bar, percent, bytes, rate, remaining time, zeros and ratio. None may break a line."""

    def one_line() -> Column:
        return Column(no_wrap=True)

    return Progress(
        TextColumn("[bold]{task.description}", table_column=one_line()),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>5.1f}%", table_column=one_line()),
        _Bytes(table_column=one_line()),
        _Rate(table_column=one_line()),
        TimeRemainingColumn(compact=True, table_column=one_line()),
        TextColumn("[dim]{task.fields[note]}", table_column=one_line()),
        console=console,
        expand=True,
        transient=False,
    )


class Picture:
    """The live display. Changing: rich's tasks, one a drive."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = make_progress(console or Console(stderr=True))
        self._drives: list[TaskID] = []
        self._total: TaskID | None = None

    def start(self, job: Job, verb: str) -> None:
        """Draw all lines, empty."""
        self._add_drives(job)
        self._progress.start()

    def _add_drives(self, job: Job) -> None:
        """A line for each drive that has none yet: a job in a server tells its drives only when it runs."""
        drives = job.progress.drives
        for drive in drives[len(self._drives) :]:
            self._drives.append(self._progress.add_task(drive.name, total=drive.size, note=""))
        if len(drives) > 1 and self._total is None:
            self._total = self._progress.add_task("total", total=job.progress.size, note="")

    def update(self, job: Job) -> None:
        """Move the bars."""
        self._add_drives(job)
        for task, drive in zip(self._drives, job.progress.drives, strict=True):
            self._progress.update(task, completed=drive.done, note=self._note(job, drive))
        if self._total is not None:
            self._progress.update(self._total, completed=job.progress.done, note=_archive_note(job))

    def _note(self, job: Job, drive: DriveProgress) -> str:
        if job.state is State.PAUSED:
            return "paused"
        zeros = f"zeros {percent(drive.zero, drive.done)}" if drive.done else ""
        if self._total is not None or self._progress.console.width < WIDE:
            return zeros
        return ", ".join(filter(None, (zeros, _archive_note(job))))

    @property
    def lines(self) -> RenderableType:
        """What is shown now."""
        return self._progress.get_renderable()

    def stop(self, job: Job) -> None:
        """Leave the last picture."""
        self.update(job)
        self._progress.stop()


def _archive_note(job: Job) -> str:
    progress = job.progress
    if not progress.written or not progress.stored:
        return ""
    return f"ratio {percent(progress.written, progress.stored)}"
