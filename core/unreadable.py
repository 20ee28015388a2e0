"""Reading around bad places of a disk: what can be read is saved, the rest becomes zeros and is listed."""

from __future__ import annotations

from typing import NamedTuple

from .device import BlockDevice

BLOCK = 4096
"""Bytes tried one by one where a larger read fails."""


class LostRange(NamedTuple):
    """Bytes of a drive that could not be read."""

    drive: str
    offset: int
    length: int


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
            if lost and lost[-1].offset + lost[-1].length == at:
                lost[-1] = lost[-1]._replace(length=lost[-1].length + length)
            else:
                lost.append(LostRange(name, at, length))
    return content, lost
