"""What is logged of clients, who are not to fill a log: some lines at once are told, and of more only how many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

MOST = 20
"""Lines within a period."""
PERIOD = 60.0
"""Seconds."""


class FewLines:
    """Logs for one server. Fixed: the log, the clock. Changing: since when lines are counted, how many there were."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: gives seconds."""
        self._log, self._clock = log, clock
        self._since, self._lines = clock(), 0

    def warning(self, text: str, *values: object) -> None:
        """Log a warning, as logging does, if there were not too many just now."""
        now = self._clock()
        if now - self._since >= PERIOD:
            self.sum_up()
            self._since = now
        self._lines += 1
        if self._lines <= MOST:
            self._log.warning(text, *values)

    def sum_up(self) -> None:
        """Tell how many lines were left out, if any were."""
        if self._lines > MOST:
            self._log.warning("%d more lines about NBD clients were left out", self._lines - MOST)
        self._lines = 0
