"""The cluster index: for every cluster of an archive whether it is zero, or else where it lies and its digest.

It lies in skippable frames: segments between the data's frames, and one directory at the end. Each is an envelope
(:data:`ENVELOPE`) around a zstd frame with a checksum. All numbers are little-endian. pybackup-archive(5) is the
specification of what this module reads and writes.

The same builder serves both directions: the writer feeds it what it writes, and a reader that verifies feeds it
what it found and compares the outcome, so that an index which lies cannot pass.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import zstandard

from . import zstd_seekable as zs
from .clusters import Buffer
from .errors import FormatError
from .vma import SlotRun
from .vma_layout import BLOCK_SIZE, CLUSTER_DIGEST_SIZE, EXTENT_HEADER_SIZE

ENVELOPE = struct.Struct("<4sBBHI")
"""magic, version, kind, zero, size of the content in bytes; the content follows as one zstd frame"""
ENVELOPE_MAGIC = b"PBXI"
VERSION = 1
SEGMENT, DIRECTORY = 1, 2

SEGMENT_START = struct.Struct("<QQIII")
"""file offset of the first frame, VMA offset of its content, number of frames, of runs, of stored clusters"""
FRAME_ROW = struct.Struct("<II")
"""compressed size, decompressed size"""
RUN = struct.Struct("<BBHII")
"""drive id, kind, zero, first cluster, number of clusters; in the order of the archive"""
RUN_ZERO, RUN_STORED = 0, 1
DIRECTORY_START = struct.Struct("<III")
"""number of segments, of ranges, bytes of JSON"""
SEGMENT_ROW = struct.Struct("<QII")
"""file offset of the segment's frame, its length, number of its ranges"""
RANGE = struct.Struct("<BxxxII")
"""drive id, first cluster, last cluster that the segment speaks of"""

MAX_FRAMES, MAX_STORED, MAX_RUNS = 1024, 4096, 8192
"""A segment ends when one of these is reached: at most some 200 KB."""
MAX_CONTENT = {SEGMENT: 4 << 20, DIRECTORY: 64 << 20}
"""Larger contents are refused when they are read."""

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("the cluster index is only implemented for little-endian machines")


def wrap(kind: int, content: bytes) -> bytes:
    """The skippable frame that holds a segment or the directory."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=True)
    envelope = ENVELOPE.pack(ENVELOPE_MAGIC, VERSION, kind, 0, len(content))
    return zs.skippable(zs.INDEX_MAGIC, envelope + compressor.compress(content))


def unwrap(frame: Buffer, offset: int) -> tuple[int, bytes]:
    """The kind and the content of an index frame, whole; ``offset`` in the file is for messages (FormatError)."""
    payload = memoryview(frame)[zs.SKIPPABLE_HEADER.size :]
    if len(payload) < ENVELOPE.size:
        raise FormatError("an index frame is cut short", offset)
    magic, version, kind, zero, size = ENVELOPE.unpack_from(payload)
    if magic != ENVELOPE_MAGIC or zero or kind not in MAX_CONTENT or size > MAX_CONTENT[kind]:
        raise FormatError("an index frame is damaged", offset)
    if version != VERSION:
        raise FormatError(f"version {version} of the cluster index is not known", offset)
    compressed = payload[ENVELOPE.size :]
    try:
        header = zs.parse_frame_header(compressed)
        sound = header.content_size == size and header.has_checksum and not header.unused_bits
        if not sound or size > zs.most_content(len(compressed)):
            raise FormatError("an index frame is damaged", offset)
        content = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(
            compressed, max_output_size=size, allow_extra_data=False
        )
    except (zstandard.ZstdError, FormatError):
        raise FormatError("an index frame is damaged", offset) from None
    if len(content) != size:
        raise FormatError("an index frame is damaged", offset)
    return kind, content


@dataclass(slots=True)
class DriveCounts:
    """What an archive holds of one drive; all in clusters, but ``stored_bytes``."""

    stored_clusters: int = 0
    zero_clusters: int = 0
    stored_bytes: int = 0


def describe_drive(drive_id: int, name: str, size: int, counts: Mapping[int, DriveCounts]) -> dict[str, Any]:
    """What the directory's JSON tells of one drive; ``size`` in bytes."""
    return {"id": drive_id, "name": name, "size": size, **asdict(counts.get(drive_id, DriveCounts()))}


class IndexBuilder:
    """Gathers segments and the directory while an archive is written, or read through.

    Changing: everything, in the order of the archive; one caller at a time.
    """

    def __init__(self, file_offset: int = 0, vma_offset: int = 0) -> None:
        self.file_offset, self.vma_offset = file_offset, vma_offset
        self.counts: dict[int, DriveCounts] = {}
        self._ranges: list[tuple[int, int, int]] = []
        self._segments: list[tuple[int, int, int]] = []
        self._next_segment()

    def _next_segment(self) -> None:
        self._first = (self.file_offset, self.vma_offset)
        self._frames, self._masks, self._places = array("I"), array("H"), array("I")
        self._digests = bytearray()
        self._runs: list[list[int]] = []
        self._at = self.vma_offset

    def add_frame(self, compressed: int, decompressed: int) -> None:
        """A frame of the VMA stream came next in the file; sizes in bytes."""
        self._frames.extend((compressed, decompressed))
        self.file_offset += compressed
        self.vma_offset += decompressed

    def add_extent(self, slots: Iterable[SlotRun], digests: Iterable[bytes]) -> None:
        """An extent came next in the VMA stream, with the digests of its non-zero clusters in slot order."""
        place = self._at + EXTENT_HEADER_SIZE
        for drive_id, cluster, count, mask in slots:
            self._extend_run(drive_id, RUN_STORED if mask else RUN_ZERO, cluster, count)
            if mask:
                size = mask.bit_count() * BLOCK_SIZE
                end = place + count * size
                start = self._first[1]
                self._masks.extend([mask] * count)
                self._places.extend((at - start) // EXTENT_HEADER_SIZE for at in range(place, end, size))
                self.counts[drive_id].stored_bytes += end - place
                place = end
        self._digests += b"".join(digests)
        self._at = place

    def add_zero_extents(self, drive_id: int, first: int, count: int, vma_bytes: int) -> None:
        """Extents of nothing but ``count`` zero clusters in a row came next, ``vma_bytes`` long."""
        self._extend_run(drive_id, RUN_ZERO, first, count)
        self._at += vma_bytes

    def _extend_run(self, drive_id: int, kind: int, first: int, count: int) -> None:
        counts = self.counts.get(drive_id)
        if counts is None:
            counts = self.counts[drive_id] = DriveCounts()
        if kind == RUN_ZERO:
            counts.zero_clusters += count
        else:
            counts.stored_clusters += count
        last = self._runs[-1] if self._runs else None
        if last and last[0] == drive_id and last[1] == kind and last[2] + last[3] == first:
            last[3] += count
        else:
            self._runs.append([drive_id, kind, first, count])

    @property
    def segment_is_full(self) -> bool:
        """Whether the writer should put a segment here."""
        return len(self._frames) >= 2 * MAX_FRAMES or len(self._masks) >= MAX_STORED or len(self._runs) >= MAX_RUNS

    @property
    def segment_is_overdue(self) -> bool:
        """Whether no archive of ours goes on so long without a segment."""
        frames, stored, runs = len(self._frames) // 2, len(self._masks), len(self._runs)
        return frames > 2 * MAX_FRAMES or stored > 2 * MAX_STORED or runs > 2 * MAX_RUNS

    @property
    def segment_is_empty(self) -> bool:
        """Whether nothing was added since the last segment."""
        return not self._runs and not self._frames

    def take_segment(self) -> bytes:
        """The content of the segment that ends here; the next one begins."""
        content = b"".join(
            (
                SEGMENT_START.pack(*self._first, len(self._frames) // 2, len(self._runs), len(self._masks)),
                self._frames.tobytes(),
                *(RUN.pack(drive, kind, 0, first, count) for drive, kind, first, count in self._runs),
                self._masks.tobytes(),
                self._places.tobytes(),
                self._digests,
            )
        )
        self._taken_ranges = _ranges_of(self._runs)
        self._next_segment()
        return content

    def forget_segment(self) -> None:
        """Drop what would be the next segment: an archive without an index has counts all the same."""
        self._next_segment()

    def segment_written(self, length: int) -> None:
        """The segment taken last lies next in the file, in a frame of ``length`` bytes."""
        self._segments.append((self.file_offset, length, len(self._taken_ranges)))
        self._ranges += self._taken_ranges
        self.file_offset += length
        self._first = (self.file_offset, self.vma_offset)

    def directory(self, about: dict[str, Any]) -> bytes:
        """The content of the directory; ``about`` is stored as JSON."""
        text = json.dumps(about, separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode()
        return b"".join(
            (
                DIRECTORY_START.pack(len(self._segments), len(self._ranges), len(text)),
                *(SEGMENT_ROW.pack(*row) for row in self._segments),
                *(RANGE.pack(*row) for row in self._ranges),
                text,
            )
        )


def _ranges_of(runs: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """For each drive of a segment the first and the last cluster that it speaks of."""
    found: dict[int, tuple[int, int]] = {}
    for drive_id, _, first, count in runs:
        low, high = found.get(drive_id, (first, first + count - 1))
        found[drive_id] = min(low, first), max(high, first + count - 1)
    return [(drive_id, low, high) for drive_id, (low, high) in sorted(found.items())]


# -- read -----------------------------------------------------------------------------------------------------------


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
        self.runs = [(drive, kind, first, count) for drive, kind, _, first, count in RUN.iter_unpack(tables[1])]
        self._masks, self._places, self._digests = array("H", tables[2]), array("I", tables[3]), tables[4]
        self._sort_runs(stored)
        self._place_frames()

    def _sort_runs(self, stored: int) -> None:
        """For look-ups: each drive's runs by their first cluster, with the number of their first stored cluster."""
        self._by_drive: dict[int, list[tuple[int, int, int]]] = {}
        number = 0
        for drive, kind, first, count in self.runs:
            if kind not in (RUN_ZERO, RUN_STORED) or not count:
                raise ValueError("run")
            self._by_drive.setdefault(drive, []).append((first, count, number if kind == RUN_STORED else -1))
            number += count if kind == RUN_STORED else 0
        if number != stored:
            raise ValueError("stored")
        for runs in self._by_drive.values():
            runs.sort()

    def _place_frames(self) -> None:
        self._file_offsets, self._vma_offsets = [self.file_offset], [self.vma_offset]
        for compressed, decompressed in zip(self._frames[::2], self._frames[1::2], strict=True):
            self._file_offsets.append(self._file_offsets[-1] + compressed)
            self._vma_offsets.append(self._vma_offsets[-1] + decompressed)

    @property
    def compressed_size(self) -> int:
        """Bytes that the segment's frames take in the file."""
        return self._file_offsets[-1] - self.file_offset

    def run_at(self, drive_id: int, cluster: int) -> tuple[int, int, int] | None:
        """(clusters left in the run from ``cluster`` on, kind, number of its stored cluster), or None."""
        runs = self._by_drive.get(drive_id, [])
        at = bisect_right(runs, (cluster, 1 << 32, 0)) - 1
        if at < 0 or cluster >= runs[at][0] + runs[at][1]:
            return None
        first, count, number = runs[at]
        left = first + count - cluster
        return (left, RUN_ZERO, -1) if number < 0 else (left, RUN_STORED, number + cluster - first)

    def blocks_in(self, number: int, count: int) -> int:
        """How many blocks ``count`` stored clusters have, from that number on."""
        return int.from_bytes(self._masks[number : number + count].tobytes(), "little").bit_count()

    def stored(self, number: int) -> StoredCluster:
        """The stored cluster of that number, as run_at() gives it."""
        at = number * CLUSTER_DIGEST_SIZE
        place = self.vma_offset + self._places[number] * EXTENT_HEADER_SIZE
        return StoredCluster(place, self._masks[number], self._digests[at : at + CLUSTER_DIGEST_SIZE])

    def frame_of(self, vma_offset: int) -> FramePlace:
        """The frame that holds a byte of the VMA stream (FormatError where the segment has none)."""
        at = bisect_right(self._vma_offsets, vma_offset) - 1
        if not 0 <= at < len(self._vma_offsets) - 1:
            raise FormatError("the index names a place outside its frames", vma_offset)
        return FramePlace(self._file_offsets[at], self._frames[2 * at], self._vma_offsets[at], self._frames[2 * at + 1])


class SegmentPlace(NamedTuple):
    """Where a segment's frame lies, and for each of its drives the first and the last cluster."""

    file_offset: int
    length: int
    ranges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Directory:
    """The directory, decoded: the segments' places, and what it tells about the archive."""

    segments: tuple[SegmentPlace, ...]
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def decode(cls, content: bytes) -> Directory:
        """Read a directory's content (FormatError)."""
        try:
            segments, ranges, text = DIRECTORY_START.unpack_from(content)
            at = DIRECTORY_START.size
            ranges_at = at + segments * SEGMENT_ROW.size
            text_at = ranges_at + ranges * RANGE.size
            if text_at + text != len(content):
                raise ValueError("sizes")
            rows = list(RANGE.iter_unpack(content[ranges_at:text_at]))
            places, used = [], 0
            for offset, length, count in SEGMENT_ROW.iter_unpack(content[at:ranges_at]):
                places.append(SegmentPlace(offset, length, tuple(rows[used : used + count])))
                used += count
            about = json.loads(content[text_at:])
            if not isinstance(about, dict) or used != len(rows):
                raise ValueError("about")
        except (struct.error, ValueError, RecursionError):
            raise FormatError("the directory of the index is damaged") from None
        return cls(tuple(places), about)

    def covering(self, drive_id: int, cluster: int) -> Iterable[SegmentPlace]:
        """The segments that may speak of a cluster."""
        for place in self.segments:
            for drive, first, last in place.ranges:
                if drive == drive_id and first <= cluster <= last:
                    yield place
