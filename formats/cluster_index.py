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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import zstandard
from blake3 import blake3

from . import zstd_seekable as zs
from .buffer import Buffer
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
DOUBLING, MOST_DOUBLED = 2 << 20, 4
"""Each time that the rows of the directory have grown by so many bytes, segments become twice as large, so often at
most: the directory stays small however large the archive becomes."""
MAX_CONTENT = {SEGMENT: 4 << 20, DIRECTORY: 16 << 20}
"""Larger contents are refused when they are read."""
MAX_ABOUT = 2 << 20
"""Bytes of the directory's JSON: as objects it takes up to 30 times as many."""

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
        self._segments, self._ranges = bytearray(), bytearray()
        self._contents = blake3()
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
        frames, stored, runs = len(self._frames) // 2, len(self._masks), len(self._runs)
        size = self._size
        return frames >= size * MAX_FRAMES or stored >= size * MAX_STORED or runs >= size * MAX_RUNS

    @property
    def segment_is_overdue(self) -> bool:
        """Whether no archive of ours goes on so long without a segment."""
        frames, stored, runs = len(self._frames) // 2, len(self._masks), len(self._runs)
        size = 2 * self._size
        return frames > size * MAX_FRAMES or stored > size * MAX_STORED or runs > size * MAX_RUNS

    @property
    def _size(self) -> int:
        """How many times as large as the first the segments are by now."""
        return 1 << min(MOST_DOUBLED, (len(self._segments) + len(self._ranges)) // DOUBLING)

    @property
    def directory_is_full(self) -> bool:
        """Whether no directory has room for a segment more."""
        return len(self._segments) + len(self._ranges) > MAX_CONTENT[DIRECTORY] - MAX_ABOUT

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
        self._contents.update(content)
        self._taken_ranges = _ranges_of(self._runs)
        self._next_segment()
        return content

    @property
    def segments_digest(self) -> str:
        """Of the contents of all segments taken so far, in hexadecimal digits.

        With it the directory tells what all clusters are, and not only where segments lie: who knows a file by its
        directory takes no other content for it.
        """
        return self._contents.digest(length=CLUSTER_DIGEST_SIZE).hex()

    def forget_segment(self) -> None:
        """Drop what would be the next segment: an archive without an index has counts all the same."""
        self._next_segment()

    def segment_written(self, length: int) -> None:
        """The segment taken last lies next in the file, in a frame of ``length`` bytes."""
        self._segments += SEGMENT_ROW.pack(self.file_offset, length, len(self._taken_ranges))
        for one in self._taken_ranges:
            self._ranges += RANGE.pack(*one)
        self.file_offset += length
        self._first = (self.file_offset, self.vma_offset)

    def directory(self, about: dict[str, Any]) -> bytes:
        """The content of the directory; ``about`` is stored as JSON."""
        text = _as_json(about)
        segments, ranges = len(self._segments) // SEGMENT_ROW.size, len(self._ranges) // RANGE.size
        return b"".join((DIRECTORY_START.pack(segments, ranges, len(text)), self._segments, self._ranges, text))


def _as_json(about: dict[str, Any]) -> bytes:
    return json.dumps(about, separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode()


def about_size(about: dict[str, Any]) -> int:
    """Bytes that ``about`` takes in the directory; readers take MAX_ABOUT."""
    return len(_as_json(about))


def _ranges_of(runs: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """For each drive of a segment the first and the last cluster that it speaks of."""
    found: dict[int, tuple[int, int]] = {}
    for drive_id, _, first, count in runs:
        low, high = found.get(drive_id, (first, first + count - 1))
        found[drive_id] = min(low, first), max(high, first + count - 1)
    return [(drive_id, low, high) for drive_id, (low, high) in sorted(found.items())]
