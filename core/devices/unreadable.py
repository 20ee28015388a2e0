"""Reading around bad places of a disk: what can be read is saved, the rest becomes zeros and is listed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from pybackup.core.device import BlockDevice

BLOCK = 4096
"""Bytes tried one by one where a larger read fails."""
SECTOR = 512
"""Bytes tried one by one at both ends of a bad place."""
MOST_LISTED = 1 << 20
"""Bytes that the list may have as JSON: readers of archives have a limit."""
_ELSEWHERE = 1 << 63


class LostRange(NamedTuple):
    """Bytes of a drive in which some could not be read: ``lost`` of them, mostly all."""

    drive: str
    offset: int
    length: int
    lost: int

    def as_json(self) -> dict[str, Any]:
        """As it stands in archives and reports; ``unreadable`` only where it differs from the length."""
        found = {"drive": self.drive, "offset": self.offset, "length": self.length}
        return found if self.lost == self.length else {**found, "unreadable": self.lost}


class LostRanges:
    """What could not be read of all drives. It takes bounded memory, for a disk may have a bad place in every track.

    Where the list becomes too long, neighbours become one, the closest first, and it says how much of that is lost.
    Changing: the ranges.
    """

    def __init__(self, ranges: Iterable[LostRange] = ()) -> None:
        self.lost = 0
        """Bytes in all."""
        self._ranges: list[LostRange] = []
        self._size = 0
        self._most = MOST_LISTED
        for one in ranges:
            self._add(one)

    @classmethod
    def from_json(cls, content: Any) -> LostRanges:
        """The list in an archive or a server's report (KeyError, TypeError, ValueError)."""
        fields = ((one, int(one["length"])) for one in content)
        return cls(
            LostRange(str(one["drive"]), int(one["offset"]), length, int(one.get("unreadable", length)))
            for one, length in fields
        )

    def add(self, drive: str, offset: int, length: int) -> None:
        """Note that these bytes are lost."""
        self._add(LostRange(drive, offset, length, length))

    def _add(self, one: LostRange) -> None:
        self.lost += one.lost
        if self._ranges and (joined := _joined(self._ranges[-1], one, 0)) is not None:
            self._ranges[-1] = joined
            return
        self._ranges.append(one)
        self._size += _size_of(one)
        if self._size > self._most:
            self._coarsen()

    def _coarsen(self) -> None:
        """Half the room is free afterwards, so it is not done for every further place."""
        self._settle()
        while self._size > MOST_LISTED // 2 and len(self._ranges) > 1:
            gaps = sorted(_gap(one, other) for one, other in pairwise(self._ranges))
            fewer = _in_pairs(self._ranges, gaps[len(gaps) // 2])
            if len(fewer) == len(self._ranges):
                self._most = sys.maxsize  # a drive each, as no backup has them
                return
            self._take(fewer)

    def _settle(self) -> None:
        """In order of drive and offset, neighbours as one: pieces of a disk are read in no particular order."""
        found: list[LostRange] = []
        for one in sorted(self._ranges):
            if found and (joined := _joined(found[-1], one, 0)) is not None:
                found[-1] = joined
            else:
                found.append(one)
        self._take(found)

    def _take(self, ranges: list[LostRange]) -> None:
        self._ranges, self._size = ranges, sum(map(_size_of, ranges))

    def __iter__(self) -> Iterator[LostRange]:
        """In order of drive and offset."""
        self._settle()
        return iter(self._ranges)

    def __len__(self) -> int:
        """How many places there are."""
        self._settle()
        return len(self._ranges)

    def as_json(self) -> list[dict[str, Any]]:
        """As it stands in archives and reports."""
        return [one.as_json() for one in self]


def _size_of(one: LostRange) -> int:
    """Bytes as JSON, or somewhat more."""
    return len(json.dumps(one.as_json())) + 24


def _gap(one: LostRange, other: LostRange) -> int:
    """Bytes between two ranges in their order; more than any disk has between those of two drives."""
    return other.offset - one.offset - one.length if one.drive == other.drive else _ELSEWHERE


def _in_pairs(ranges: list[LostRange], gap: int) -> list[LostRange]:
    """Each as one with the next, at most, where the gap is no larger than this."""
    found: list[LostRange] = []
    waiting: LostRange | None = None
    for one in ranges:
        joined = None if waiting is None else _joined(waiting, one, gap)
        if waiting is not None:
            found.append(joined or waiting)
        waiting = one if joined is None else None
    return found if waiting is None else [*found, waiting]


def _joined(one: LostRange, other: LostRange, gap: int) -> LostRange | None:
    """Both as one where the other begins in the first, or behind a gap of so many bytes at most."""
    end = one.offset + one.length
    if one.drive != other.drive or not one.offset <= other.offset <= end + gap:
        return None
    length = max(end, other.offset + other.length) - one.offset
    return LostRange(one.drive, one.offset, length, one.lost + other.lost)


async def read_around_errors(device: BlockDevice, offset: int, size: int) -> tuple[bytearray, list[tuple[int, int]]]:
    """``size`` bytes from ``offset`` on, zeros where they cannot be read, and (offset, length) of those places."""
    content = bytearray(size)
    lost: list[tuple[int, int]] = []
    for at in range(offset, offset + size, BLOCK):
        length = min(BLOCK, offset + size - at)
        if not await _read_into(device, content, offset, at, length):
            if lost and sum(lost[-1]) == at:
                lost[-1] = (lost[-1][0], lost[-1][1] + length)
            else:
                lost.append((at, length))
    trimmed = [await _trimmed(device, content, offset, *one) for one in lost]
    return content, [one for one in trimmed if one[1]]


async def _trimmed(device: BlockDevice, content: bytearray, start: int, at: int, length: int) -> tuple[int, int]:
    """What is left of a bad place: sectors at its beginning and at its end are tried, up to the first that fails."""
    end = at + length
    while at < end and await _read_into(device, content, start, at, min(SECTOR, end - at)):
        at += min(SECTOR, end - at)
    while at < end:
        last = max(at, (end - 1) // SECTOR * SECTOR)
        if not await _read_into(device, content, start, last, end - last):
            break
        end = last
    return at, end - at


async def _read_into(device: BlockDevice, content: bytearray, start: int, at: int, length: int) -> bool:
    """Read into ``content``, which begins at ``start``; False where that fails."""
    try:
        content[at - start : at - start + length] = await device.pread(at, length)
    except OSError:
        return False
    return True
