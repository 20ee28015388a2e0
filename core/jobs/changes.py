"""What somebody else knows of a disk's changes since the parent of a delta: a hint, which spares reading.

A hint can be wrong. So a random sample of what it calls unchanged is read in every run, and where one cluster differs
from the parent, the hint is dropped and all is read.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SAMPLE = 128
"""Clusters that are read again of each drive: 8 MiB."""
FULL, BY_DIGEST, BY_BITMAP, BY_SERVER = "full", "digest", "bitmap", "server"
"""The ways in which a drive comes into an archive: all of it, what differs from the parent's digests, or what QEMU's
dirty bitmap, or our server, knows to have been written."""


class ChangeMap(Protocol):
    """Which clusters of a drive may have changed. It speaks of the instant at which the drive was frozen."""

    @property
    def way(self) -> str:
        """BY_BITMAP or BY_SERVER."""
        ...

    async def run_at(self, cluster: int) -> tuple[int, bool]:
        """(end, may have changed): clusters [cluster, end) are alike. OSError where nobody can tell."""
        ...


@dataclass(frozen=True, slots=True)
class DriveWay:
    """How a drive comes into the archive, and why not in a better way: one sentence, where there was a wish for one."""

    way: str = FULL
    why: str | None = None
    is_planned: bool = False
    """Whether that is as it should be, such as a full archive after so many deltas: nobody need be told at night."""


def ways_told(ways: Mapping[str, DriveWay]) -> dict[str, Any]:
    """What an archive, and a report, tell of the ways of its drives, where there was a wish for another than all."""
    if all(way == DriveWay() for way in ways.values()):
        return {}
    return {"ways": [{"name": name, "way": way.way, "why": way.why} for name, way in ways.items()]}


class Sample:
    """A random choice among clusters that are told of run by run, each as likely as any other.

    Changing: what is chosen. (Algorithm L of Li, 1994: what is passed over costs nothing.)
    """

    def __init__(self, most: int = SAMPLE, chance: random.Random | None = None) -> None:
        self._most, self._chance = most, chance or random.Random()
        self._chosen: list[int] = []
        self._told = 0
        self._weight = 1.0
        self._next = -1

    def add(self, first: int, end: int) -> None:
        """Clusters [first, end) may be chosen too."""
        at = first
        while at < end and len(self._chosen) < self._most:
            self._chosen.append(at)
            at += 1
            self._told += 1
            if len(self._chosen) == self._most:
                self._next = self._told - 1
                self._skip()
        if len(self._chosen) < self._most:
            return
        while self._next < self._told + end - at:
            at += self._next - self._told
            self._told = self._next
            self._chosen[self._chance.randrange(self._most)] = at
            self._skip()
        self._told += end - at

    def _skip(self) -> None:
        self._weight *= math.exp(math.log(1 - self._chance.random()) / self._most)
        step = math.log(1 - self._chance.random()) / math.log1p(-self._weight) if self._weight < 1 else 0.0
        self._next += int(step) + 1

    def clusters(self) -> Sequence[int]:
        """What is chosen, in order."""
        return sorted(self._chosen)
