"""What is wrong in an archive: listed, or the end of reading it."""

from __future__ import annotations

from typing import Any, NamedTuple

from pybackup.formats import vma_layout
from pybackup.formats.errors import FormatError

MOST_DAMAGE = 1000
"""Damage that is listed; of more there is only the number."""


class Damage(NamedTuple):
    """Something wrong in an archive: where in the file (or in the VMA stream), and which clusters it concerns."""

    what: str
    drive: str | None = None
    first: int | None = None
    clusters: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``offset`` and ``length`` are bytes of the drive."""
        if self.drive is None or self.first is None or self.clusters is None:
            return {"what": self.what}
        size = vma_layout.CLUSTER_SIZE
        return {
            "what": self.what,
            "drive": self.drive,
            "first_cluster": self.first,
            "clusters": self.clusters,
            "offset": self.first * size,
            "length": self.clusters * size,
        }

    def __str__(self) -> str:
        if self.drive is None or self.first is None or self.clusters is None:
            return self.what
        start, end = self.first * vma_layout.CLUSTER_SIZE, (self.first + self.clusters) * vma_layout.CLUSTER_SIZE
        last = self.first + self.clusters - 1
        where = f"clusters {self.first} to {last} (bytes {start} to {end - 1} of the drive)"
        return f"{self.what}: drive {self.drive}, {where}"


def place_told(error: FormatError) -> str:
    """What is wrong and where, and of what the place is a byte: of drives they are told too."""
    if error.offset is None:
        return error.what
    return str(FormatError(error.what, error.offset, error.of or "the archive"))


class DamageFound:
    """The damage of one archive. Fixed: whether it ends reading. Changing, by who reads: the rest."""

    def __init__(self, *, tolerant: bool) -> None:
        """Nothing is wrong yet."""
        self.listed: list[Damage] = []
        self.not_listed = 0
        self.is_none = True
        self._tolerant = tolerant

    def note(self, damage: Damage) -> None:
        """Damage ends the reading (FormatError), or is listed: some kilobytes of archive could have it without end."""
        self.is_none = False
        if not self._tolerant:
            raise FormatError(str(damage))
        if len(self.listed) < MOST_DAMAGE:
            self.listed.append(damage)
        else:
            self.not_listed += 1

    def spoil(self, what: str | FormatError) -> None:
        """Note damage that is of no drive, or of which nobody knows of which."""
        self.note(Damage(place_told(what) if isinstance(what, FormatError) else what))
