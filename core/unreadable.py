"""Reading around bad places of a disk: what can be read is saved, the rest becomes zeros and is listed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .device import BlockDevice

BLOCK = 4096
"""Bytes tried one by one where a larger read fails."""


class LostRange(NamedTuple):
    """Bytes of a drive that could not be read."""

    drive: str
    offset: int
    length: int


def joined(lost: Iterable[LostRange]) -> list[LostRange]:
    """In order of drive and offset, and neighbours as one: pieces of a disk are read in no particular order."""
    found: list[LostRange] = []
    for one in sorted(lost):
        if found and (found[-1].drive, found[-1].offset + found[-1].length) == (one.drive, one.offset):
            found[-1] = found[-1]._replace(length=found[-1].length + one.length)
        else:
            found.append(one)
    return found


async def read_around_errors(
    device: BlockDevice, name: str, offset: int, size: int
) -> tuple[bytearray, list[LostRange]]:
    """``size`` bytes from ``offset`` on, zeros where blocks cannot be read, and the list of those places."""
    content = bytearray(size)
    lost: list[LostRange] = []
    for at in range(offset, offset + size, BLOCK):
        length = min(BLOCK, offset + size - at)
        try:
            content[at - offset : at - offset + length] = await device.pread(at, length)
        except OSError:
            lost.append(LostRange(name, at, length))
    return content, joined(lost)
