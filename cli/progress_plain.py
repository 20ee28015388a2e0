"""Plain progress for logs, pipes and simple terminals: a line now and then, which tqdm counts and formats."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from tqdm import tqdm

from pybackup.cli.estimate import Estimate
from pybackup.cli.numbers import done_of, duration, remaining, short
from pybackup.core.jobs.job import Job, State

FIRST_LINE = 2.0
"""Seconds until the first line."""
LOG_PERIOD = 10.0
"""Seconds between two lines."""


class _Lines:
    """Turns tqdm's redrawing (carriage returns) into lines, for a log."""

    def write(self, text: str) -> None:
        """Write what was drawn as a line."""
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        """Pass on."""
        sys.stderr.flush()


class _Line(tqdm):  # type: ignore[type-arg]
    """A line of text instead of a bar. Changing: ``facts``, what it says beside the time and the percentage."""

    monitor_interval = 0
    facts = ""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the format can name."""
        return {**super().format_dict, "now": time.strftime("%H:%M:%S"), "facts": self.facts}


class Plain:
    """A line over all drives. Changing: when the next one is due."""

    def __init__(self) -> None:
        self._line: _Line | None = None
        self._estimate = Estimate()
        self._due = 0.0

    def start(self, job: Job, verb: str) -> None:
        """Nothing is to be said yet."""
        # One for processes, which tqdm would make, takes semaphores of the system.
        _Line.set_lock(threading.RLock())
        self._line = _Line(
            total=job.progress.size,
            file=_Lines(),
            bar_format="{now} {percentage:.0f} %, {facts}",
            delay=1 << 30,
            ncols=1000,
        )
        self._due = time.monotonic() + FIRST_LINE

    def update(self, job: Job) -> None:
        """A line, if it is time for one."""
        self._estimate.look(job.progress.done, job.progress.effort)
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + LOG_PERIOD
            self._print(job)

    def _print(self, job: Job) -> None:
        if self._line is None:
            return
        progress = job.progress
        self._line.total, self._line.n = progress.size, progress.done
        parts = (done_of(progress.done, progress.size), self._speed(job), self._time(job))
        self._line.facts = ", ".join(filter(None, parts))
        self._line.refresh()

    def _speed(self, job: Job) -> str:
        rate = job.progress.done / job.elapsed if job.state is State.CONCLUDED and job.elapsed else self._estimate.rate
        return "" if rate is None else f"{short(rate)}/s"

    def _time(self, job: Job) -> str:
        if job.state is State.CONCLUDED:
            return f"after {duration(job.elapsed)}"
        if job.state is State.PAUSED:
            return "paused"
        return "" if self._estimate.left is None else remaining(self._estimate.left)

    def continued(self) -> None:
        """Nothing: lines are not drawn again."""

    def stop(self, job: Job) -> None:
        """The last line."""
        self._print(job)
        if self._line is not None:
            self._line.leave = True
            self._line.disable = True
