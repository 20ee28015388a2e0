"""Which progress display, and what all of them are: something that looks at a job now and then."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Protocol

from pybackup.core.jobs.job import Job

PERIOD = 0.1
"""Seconds between two looks at a job."""
LINE_PERIOD = 1.0
"""Seconds between two lines of JSON."""


class Display(Protocol):
    """Shows a job. Each method is called from the event loop and returns at once."""

    def start(self, job: Job, verb: str) -> None:
        """The job begins; ``verb`` says what it does, such as "backup"."""
        ...

    def update(self, job: Job) -> None:
        """Some time has passed."""
        ...

    def continued(self) -> None:
        """We were stopped by Ctrl-Z, and go on."""
        ...

    def stop(self, job: Job) -> None:
        """The job has ended, in whatever way."""
        ...


def choose(kind: str, quiet: bool) -> Display:
    """The display for --progress KIND; what it needs is loaded now."""
    if kind == "auto":
        kind = "rich" if sys.stderr.isatty() else "none"
    if kind == "rich" and sys.stderr.isatty() and not _can_move():
        kind = "plain"
    if quiet or kind == "none":
        return Nothing()
    if kind == "json":
        return JsonLines()
    if kind == "plain":
        from pybackup.cli.progress_plain import Plain

        return Plain()
    from pybackup.cli.progress_rich import Picture

    return Picture()


def _can_move() -> bool:
    """Whether the terminal lets us draw what is there again."""
    return os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def shows_summary(kind: str, quiet: bool, verbose: bool) -> bool:
    """Whether a closing sentence follows a job: where somebody watched it, or asked for more, and not for less."""
    watched = kind in ("rich", "plain") or (kind == "auto" and sys.stderr.isatty())
    return (watched or verbose) and not quiet


class Nothing:
    """Shows nothing."""

    def start(self, job: Job, verb: str) -> None:
        """Nothing."""

    def update(self, job: Job) -> None:
        """Nothing."""

    def continued(self) -> None:
        """Nothing."""

    def stop(self, job: Job) -> None:
        """Nothing."""


class JsonLines:
    """One JSON object a line on stderr, once a second and at the end."""

    def __init__(self) -> None:
        self._last = 0.0
        self._verb = ""

    def start(self, job: Job, verb: str) -> None:
        """The first line."""
        self._verb = verb
        self._print(job)

    def update(self, job: Job) -> None:
        """A line, if it is time for one."""
        if time.monotonic() - self._last >= LINE_PERIOD:
            self._print(job)

    def continued(self) -> None:
        """Nothing."""

    def stop(self, job: Job) -> None:
        """The last line."""
        self._print(job)

    def _print(self, job: Job) -> None:
        self._last = time.monotonic()
        progress = job.progress
        drives = [
            {"name": drive.name, "size": drive.size, "done": drive.done, "zero": drive.zero}
            for drive in progress.drives
        ]
        line = {
            "event": self._verb,
            "state": str(job.state),
            "size": progress.size,
            "done": progress.done,
            "zero": progress.zero,
            "written": progress.written,
            "seconds": round(job.elapsed, 3),
            "drives": drives,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)
