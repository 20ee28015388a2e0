"""Plain progress for logs and pipes, by tqdm: one line, drawn again every ten seconds on a line of its own."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from pybackup.core.job import Job

LOG_PERIOD = 10.0
"""Seconds between two lines where stderr is no terminal."""


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


class Plain:
    """A tqdm bar over all drives."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def start(self, job: Job, verb: str) -> None:
        """Draw an empty bar."""
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=job.progress.size,
            desc=verb,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            mininterval=0.5 if terminal else LOG_PERIOD,
            file=sys.stderr if terminal else _Lines(),
            ascii=not terminal,
            dynamic_ncols=terminal,
            ncols=None if terminal else 100,
        )

    def update(self, job: Job) -> None:
        """Move on to where the job is; tqdm decides whether to draw."""
        if self._bar is not None:
            self._bar.total = job.progress.size
            self._bar.update(job.progress.done - self._bar.n)

    def stop(self, job: Job) -> None:
        """Draw the end."""
        if self._bar is not None:
            self.update(job)
            self._bar.close()
