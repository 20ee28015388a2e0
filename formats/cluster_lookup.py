"""The cluster index, read: where a cluster lies, from the tables of segments and directory (see cluster_index.py).

The tables stay as they lie in the file, or in arrays: a fragmented disk has very many rows, and what a file claims
must not become a hundred times as much in memory.
"""

from __future__ import annotations

import json
import operator
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate, chain, islice, repeat
from typing import Any, NamedTuple

from .cluster_index import (
    DIRECTORY_START,
    FRAME_ROW,
    MAX_ABOUT,
    RANGE,
    RUN,
    RUN_STORED,
    RUN_ZERO,
    SEGMENT_ROW,
    SEGMENT_START,
)
from .errors import FormatError
from .vma_layout import BLOCK_SIZE, CLUSTER_DIGEST_SIZE, EXTENT_HEADER_SIZE


class FramePlace(NamedTuple):
    """Where a frame lies in the file and which bytes of the VMA stream it holds."""

    file_offset: int
    compressed: int
    vma_offset: int
    decompressed: int


class StoredCluster(NamedTuple):
    """Where a cluster's stored blocks begin in the VMA stream, which they are, and their digest."""

    vma_offset: int
    mask: int
    digest: bytes


class FrameGroup(NamedTuple):
    """Neighbouring frames, mostly one, and the numbers [first, end) of the stored clusters that lie in them alone.

    ``is_exact``: it is one frame, and holds nothing else.
    """

    frames: tuple[FramePlace, ...]
    first: int
    end: int
    is_exact: bool


class Segment:
    """A segment, decoded. Fixed after construction."""

    def __init__(self, content: bytes) -> None:
        try:
            self._decode(content)
        except (struct.error, ValueError, IndexError, OverflowError):
            raise FormatError("a segment of the index is damaged") from None

    def _decode(self, content: bytes) -> None:
        numbers: tuple[int, int, int, int, int] = SEGMENT_START.unpack_from(content)
        self.file_offset, self.vma_offset, frames, runs, stored = numbers
        at = SEGMENT_START.size
        sizes = frames * FRAME_ROW.size, runs * RUN.size, stored * 2, stored * 4, stored * CLUSTER_DIGEST_SIZE
        if at + sum(sizes) != len(content):
            raise ValueError("sizes")
        tables = []
        for size in sizes:
            tables.append(content[at : at + size])
            at += size
        self._frames = array("I", tables[0])
        self._runs, self._run_count = tables[1], runs
        self._masks, self._places, self._digests = array("H", tables[2]), array("I", tables[3]), tables[4]
        self._sort_runs(stored)
        self._place_frames()

    @property
    def size(self) -> int:
        """About how many bytes of memory the segment takes."""
        return 28 * len(self._frames) // 2 + 28 * self._run_count + 22 * len(self._masks) + 1000

    @property
    def runs(self) -> Iterator[tuple[int, int, int, int]]:
        """(drive id, kind, first cluster, clusters) of each run, in the order of the archive."""
        for drive, kind, _, first, count in RUN.iter_unpack(self._runs):
            yield drive, kind, first, count

    def _sort_runs(self, stored: int) -> None:
        """For look-ups: each drive's runs by their first cluster, with the number of their first stored cluster.

        In arrays, for a fragmented disk has very many: ``first cluster, place in the table, stored clusters before``.
        """
        unsorted: dict[int, tuple[array[int], array[int], array[int]]] = {}
        number = 0
        for at, (drive, kind, first, count) in enumerate(self.runs):
            if kind not in (RUN_ZERO, RUN_STORED) or not count:
                raise ValueError("run")
            firsts, places, before = unsorted.setdefault(drive, (array("I"), array("I"), array("I")))
            firsts.append(first)
            places.append(at)
            before.append(number)
            number += count if kind == RUN_STORED else 0
        if number != stored:
            raise ValueError("stored")
        self._by_drive = {drive: _sorted(*columns) for drive, columns in unsorted.items()}

    def _place_frames(self) -> None:
        self._file_offsets = array("Q", accumulate(self._frames[::2], initial=self.file_offset))
        self._vma_offsets = array("Q", accumulate(self._frames[1::2], initial=self.vma_offset))

    @property
    def compressed_size(self) -> int:
        """Bytes that the segment's frames take in the file."""
        return self._file_offsets[-1] - self.file_offset

    def compressed_sizes(self) -> dict[int, int]:
        """For each drive the bytes that its clusters take in the file: about, where drives share a frame.

        A shared frame is divided by the bytes in it, and frames of nothing but zeros by the number of clusters.
        """
        sizes: dict[int, int] = {}
        clusters: dict[int, int] = {}
        shared: dict[int, dict[int, int]] = {}
        number = 0
        for drive, kind, _, count in self.runs:
            clusters[drive] = clusters.get(drive, 0) + count
            if kind == RUN_STORED:
                low, high = self._count_ends(drive, number, count, shared)
                between = self._file_offsets[high] - self._file_offsets[low + 1] if high > low + 1 else 0
                sizes[drive] = sizes.get(drive, 0) + between
                number += count
        for frame, parts in shared.items():
            for drive, part in parts.items():
                sizes[drive] += self._frames[2 * frame] * part // max(1, sum(parts.values()))
        rest = max(0, self.compressed_size - sum(sizes.values()))
        for drive, count in clusters.items():
            sizes[drive] = sizes.get(drive, 0) + rest * count // sum(clusters.values())
        return sizes

    def _count_ends(self, drive: int, number: int, count: int, shared: dict[int, dict[int, int]]) -> tuple[int, int]:
        """The first and the last frame of a run of stored clusters; its bytes in those two are added to ``shared``."""
        last = number + count - 1
        start = self.vma_offset + self._places[number] * EXTENT_HEADER_SIZE
        end = self.vma_offset + self._places[last] * EXTENT_HEADER_SIZE + self._masks[last].bit_count() * BLOCK_SIZE
        low = max(0, bisect_right(self._vma_offsets, start) - 1)
        high = bisect_left(self._vma_offsets, end) - 1
        for frame in {low, high}:
            if 0 <= frame < len(self._frames) // 2:
                part = min(end, self._vma_offsets[frame + 1]) - max(start, self._vma_offsets[frame])
                parts = shared.setdefault(frame, {})
                parts[drive] = parts.get(drive, 0) + max(0, part)
        return low, high

    def run_at(self, drive_id: int, cluster: int) -> tuple[int, int, int] | None:
        """(clusters left in the run from ``cluster`` on, kind, number of its stored cluster), or None."""
        firsts, places, before = self._by_drive.get(drive_id, _NO_RUNS)
        at = bisect_right(firsts, cluster) - 1
        if at < 0:
            return None
        _, kind, _, first, count = RUN.unpack_from(self._runs, places[at] * RUN.size)
        if cluster >= first + count:
            return None
        return first + count - cluster, kind, -1 if kind == RUN_ZERO else before[at] + cluster - first

    def runs_between(self, drive_id: int, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(first cluster, clusters, number of the first stored one or -1 for zeros) of runs that touch [first, end).

        In the order of their first clusters.
        """
        firsts, places, before = self._by_drive.get(drive_id, _NO_RUNS)
        for at in range(max(0, bisect_right(firsts, first) - 1), len(firsts)):
            if firsts[at] >= end:
                return
            _, kind, _, start, count = RUN.unpack_from(self._runs, places[at] * RUN.size)
            if start + count > first:
                yield start, count, -1 if kind == RUN_ZERO else before[at]

    def digests(self, number: int, count: int) -> bytes:
        """The digests of stored clusters in a row, 16 bytes each, joined."""
        return self._digests[number * CLUSTER_DIGEST_SIZE : (number + count) * CLUSTER_DIGEST_SIZE]

    def blocks_in(self, number: int, count: int) -> int:
        """How many blocks ``count`` stored clusters have, from that number on."""
        return int.from_bytes(self._masks[number : number + count].tobytes(), "little").bit_count()

    def stored(self, number: int) -> StoredCluster:
        """The stored cluster of that number, as run_at() gives it."""
        at = number * CLUSTER_DIGEST_SIZE
        place = self.vma_offset + self._places[number] * EXTENT_HEADER_SIZE
        return StoredCluster(place, self._masks[number], self._digests[at : at + CLUSTER_DIGEST_SIZE])

    def extent_of(self, number: int, count: int) -> tuple[int, int]:
        """From where to where in the VMA stream neighbouring stored clusters lie."""
        last = number + count - 1
        return self._place(number), self._place(last) + self._masks[last].bit_count() * BLOCK_SIZE

    def frame_groups(self, most: int) -> Iterator[FrameGroup]:
        """The frames that hold stored clusters, in their order; frames that share a cluster together, ``most`` at most.

        FormatError where clusters do not lie one behind the other, as those of an archive do.
        """
        number = frame = 0
        while number < len(self._masks):
            first, position = number, self._place(number)
            is_exact = position == self.frame_of(position).vma_offset
            low = bisect_right(self._vma_offsets, position) - 1
            if low < frame:
                raise FormatError("clusters of the index lie one over the other", position)
            frame = low
            while number < len(self._masks) and (place := self._place(number)) < self._vma_offsets[frame + 1]:
                if place < position:
                    raise FormatError("clusters of the index lie one over the other", place)
                is_exact = is_exact and place == position
                position = place + self._masks[number].bit_count() * BLOCK_SIZE
                while position > self._vma_offsets[frame + 1]:
                    frame += 1
                    if frame - low == most or frame + 1 >= len(self._vma_offsets):
                        raise FormatError("the index names a place outside its frames", place)
                number += 1
            is_exact = is_exact and frame == low and position == self._vma_offsets[frame + 1]
            yield FrameGroup(tuple(map(self._frame, range(low, frame + 1))), first, number, is_exact)
            frame += 1

    def _place(self, number: int) -> int:
        return self.vma_offset + self._places[number] * EXTENT_HEADER_SIZE

    def frame_of(self, vma_offset: int) -> FramePlace:
        """The frame that holds a byte of the VMA stream (FormatError where the segment has none)."""
        at = bisect_right(self._vma_offsets, vma_offset) - 1
        if not 0 <= at < len(self._vma_offsets) - 1:
            raise FormatError("the index names a place outside its frames", vma_offset)
        return self._frame(at)

    def _frame(self, at: int) -> FramePlace:
        return FramePlace(self._file_offsets[at], self._frames[2 * at], self._vma_offsets[at], self._frames[2 * at + 1])


_NO_RUNS = array("I"), array("I"), array("I")


def _sorted(first: array[int], *others: array[int]) -> tuple[array[int], ...]:
    """The columns of a table in the order of the first; mostly they have it."""
    if all(map(operator.le, first, islice(first, 1, None))):
        return first, *others
    order = sorted(range(len(first)), key=first.__getitem__)
    return tuple(array(column.typecode, map(column.__getitem__, order)) for column in (first, *others))


class SegmentPlace(NamedTuple):
    """Where a segment's frame lies, and for each of its drives the first and the last cluster."""

    file_offset: int
    length: int
    ranges: tuple[tuple[int, int, int], ...]


class _DriveRanges(NamedTuple):
    """What segments speak of one drive, by their first cluster; ``reach``: the highest last cluster so far."""

    first: array[int]
    last: array[int]
    segment: array[int]
    reach: array[int]


class Directory:
    """The directory, decoded: the segments' places, and what it tells about the archive.

    Fixed after construction. Tables stay as they lie in the file, for of a large archive they are long.
    """

    def __init__(self, rows: bytes, ranges: bytes, about: dict[str, Any]) -> None:
        """Of the tables as they lie in the file (ValueError where they do not fit each other)."""
        self.about = about
        self._rows, self._ranges = rows, ranges
        self._ranges_before = array("I", accumulate((row[2] for row in SEGMENT_ROW.iter_unpack(rows)), initial=0))
        if self._ranges_before[-1] != len(ranges) // RANGE.size:
            raise ValueError("ranges")
        self._by_drive = self._sort_ranges()

    def _sort_ranges(self) -> dict[int, _DriveRanges]:
        found: dict[int, tuple[array[int], array[int], array[int]]] = {}
        counts = (row[2] for row in SEGMENT_ROW.iter_unpack(self._rows))
        owners = chain.from_iterable(repeat(number, count) for number, count in enumerate(counts))
        for number, (drive, first, last) in zip(owners, RANGE.iter_unpack(self._ranges), strict=True):
            columns = found.setdefault(drive, (array("I"), array("I"), array("I")))
            for column, value in zip(columns, (first, last, number), strict=True):
                column.append(value)
        by_drive = {}
        for drive, columns in found.items():
            firsts, lasts, numbers = _sorted(*columns)
            by_drive[drive] = _DriveRanges(firsts, lasts, numbers, array("I", accumulate(lasts, max)))
        return by_drive

    @classmethod
    def decode(cls, content: bytes) -> Directory:
        """Read a directory's content (FormatError)."""
        try:
            segments, ranges, text = DIRECTORY_START.unpack_from(content)
            ranges_at = DIRECTORY_START.size + segments * SEGMENT_ROW.size
            text_at = ranges_at + ranges * RANGE.size
            if text_at + text != len(content) or text > MAX_ABOUT:
                raise ValueError("sizes")
            about = json.loads(content[text_at:], parse_constant=_refuse_constant)
            if not isinstance(about, dict):
                raise ValueError("about")
            return cls(content[DIRECTORY_START.size : ranges_at], content[ranges_at:text_at], about)
        except (struct.error, ValueError, OverflowError, RecursionError):
            raise FormatError("the directory of the index is damaged") from None

    @property
    def segments(self) -> Iterator[SegmentPlace]:
        """The places of all segments, in the order of the file."""
        return map(self._place, range(len(self._rows) // SEGMENT_ROW.size))

    def _place(self, number: int) -> SegmentPlace:
        offset, length, count = SEGMENT_ROW.unpack_from(self._rows, number * SEGMENT_ROW.size)
        start = self._ranges_before[number] * RANGE.size
        ranges = RANGE.iter_unpack(self._ranges[start : start + count * RANGE.size])
        return SegmentPlace(offset, length, tuple((drive, first, last) for drive, first, last in ranges))

    def covering(self, drive_id: int, cluster: int) -> Iterator[SegmentPlace]:
        """The segments that may speak of a cluster."""
        return self.overlapping(drive_id, cluster, cluster + 1)

    def overlapping(self, drive_id: int, first: int, end: int) -> Iterator[SegmentPlace]:
        """The segments that may speak of clusters [first, end)."""
        ranges = self._by_drive.get(drive_id)
        if ranges is None:
            return
        for at in range(bisect_left(ranges.first, end) - 1, -1, -1):
            if ranges.reach[at] < first:
                return
            if ranges.last[at] >= first:
                yield self._place(ranges.segment[at])


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
