"""How fast a job is, and how long it will take: judged by the last seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

WINDOW = 5.0
"""Seconds that count."""
LEAST = 0.5
"""Seconds before which nothing is said."""
GAP = 0.6
"""Seconds between two looks after which we were not running: stopped by Ctrl-Z, or with the machine asleep."""


class _Look(NamedTuple):
    at: float
    done: int
    effort: int


class Estimate:
    """Changing: what was seen in the last seconds, and the whole effort, which may turn out to be another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: deque[_Look] = deque()
        self._whole = 0

    def look(self, done: int, effort: tuple[int, int]) -> None:
        """How far it is now: ``done`` in bytes of disk, ``effort`` as (done, whole) of what takes time."""
        now = self._clock()
        if self._looks and (effort[1] != self._whole or effort[0] < self._looks[-1].effort):
            self._looks.clear()
        if self._looks and now - self._looks[-1].at > GAP:
            missed = now - self._looks[-1].at
            self._looks = deque(one._replace(at=one.at + missed) for one in self._looks)
        self._whole = effort[1]
        self._looks.append(_Look(now, done, effort[0]))
        while now - self._looks[0].at > WINDOW:
            self._looks.popleft()

    def _seconds(self) -> float:
        seconds = self._looks[-1].at - self._looks[0].at if self._looks else 0.0
        return seconds if seconds >= LEAST else 0.0

    @property
    def rate(self) -> float | None:
        """Bytes of disk a second."""
        seconds = self._seconds()
        return (self._looks[-1].done - self._looks[0].done) / seconds if seconds else None

    @property
    def left(self) -> float | None:
        """Seconds; None where nothing moves, or it is too early to say."""
        seconds = self._seconds()
        moved = self._looks[-1].effort - self._looks[0].effort if seconds else 0
        return (self._whole - self._looks[-1].effort) * seconds / moved if moved > 0 else None
