"""Where a sparse file has data, asked of the filesystem with SEEK_DATA and SEEK_HOLE (lseek(2)).

A wrong "hole" loses data, a wrong "data" costs time. So every doubt is data: only ENXIO from SEEK_DATA says that
nothing follows, any other error makes the rest data, and data is rounded outwards to 4 KiB, for some filesystems
have reported holes that began inside a written block.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import TypeAlias

from pybackup.core.device import BlockStatus

GRANULE = 4096
"""Bytes that data is rounded to, outwards."""

MOST_EXTENTS = 4096
"""Extents in one answer; a badly fragmented file is asked again from where the answer ends."""

Seek: TypeAlias = Callable[[int, int], int]
"""seek(offset, whence) as lseek(2): returns the new offset in bytes, raises OSError."""


def file_extents(seek: Seek, offset: int, length: int) -> list[BlockStatus]:
    """Describe ``length`` bytes (at least 1) from ``offset``; ends early after MOST_EXTENTS. Raises nothing."""
    extents: list[BlockStatus] = []
    position, end = offset, offset + length
    for start, behind in _data_runs(seek, offset - offset % GRANULE, end):
        if start > position:
            extents.append(_hole(position, start))
        position = max(start, position)
        extents.append(BlockStatus(position, min(behind, end) - position, zero=False, hole=False))
        position = min(behind, end)
        if len(extents) >= MOST_EXTENTS:
            return extents
    if position < end:
        extents.append(_hole(position, end))
    return extents


def all_data(offset: int, length: int) -> list[BlockStatus]:
    """Describe a range of which nothing is known: data."""
    return [BlockStatus(offset, length, zero=False, hole=False)]


def _hole(start: int, end: int) -> BlockStatus:
    return BlockStatus(start, end - start, zero=True, hole=True)


def _data_runs(seek: Seek, position: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of data, rounded outwards, in order, neither touching nor overlapping, up to ``end``."""
    start, behind = _next_data(seek, position, end)
    while start < end:
        following, following_end = _next_data(seek, behind, end) if behind < end else (end, end)
        if following >= end or following > behind:
            yield start, behind
            start = following
        behind = following_end


def _next_data(seek: Seek, position: int, end: int) -> tuple[int, int]:
    """The next data at or behind ``position``, rounded outwards; (end, end) when there is none before ``end``."""
    try:
        start = seek(position, os.SEEK_DATA)
    except OSError as error:
        return (end, end) if error.errno == errno.ENXIO else (position, end)
    if start < position:
        return position, end
    if start >= end:
        return end, end
    return start - start % GRANULE, _round_up(_data_end(seek, start, end))


def _data_end(seek: Seek, start: int, end: int) -> int:
    """Where the data at ``start`` ends; ``end`` when the filesystem does not say anything that can be right."""
    try:
        hole = seek(start, os.SEEK_HOLE)
    except OSError:
        return end
    return hole if hole > start else end


def _round_up(offset: int) -> int:
    return -(-offset // GRANULE) * GRANULE
