"""An archive, written: clusters in, bytes out.

The encoder has three steps, so that the costly one can run in any thread: ``add`` gathers clusters into items (in
the caller's order), ``encode`` turns one item into compressed frames (pure, any thread, any order), ``commit``
takes the encoded items in order and returns the bytes of the file, index and seek table included.

Frames of other archives can be taken as they are (``add_frame``): of an extent with several frames the header has one
of its own, so that nothing in the others says whose they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import zstandard

from . import cluster_index as index
from . import vma, vma_layout
from . import zstd_seekable as zs
from .buffer import Buffer
from .clusters import EMPTY_EXTENT_DIGEST, ClusterRun, Part, extent_digest, frame_digest, zero_run
from .vma import Header, SlotRun

DEFAULT_LEVEL = 3
DEFAULT_FRAME_SIZE = 256 << 10
MIN_FRAME_SIZE = 64 << 10
MAX_FRAME_SIZE = 8 << 20
"""Readers take frames up to this size at once."""


@dataclass(slots=True)
class Extent:
    """Up to 58 clusters that will be written together: which ones, and what is stored of each run of them."""

    slots: list[SlotRun] = field(default_factory=list)
    contents: list[ClusterRun] = field(default_factory=list)
    clusters: int = 0
    blocks: int = 0

    def add(self, drive_id: int, first: int, run: ClusterRun) -> None:
        """Append clusters in a row, for which there must be room."""
        self.slots.append(SlotRun(drive_id, first, run.clusters, run.mask))
        self.contents.append(run)
        self.clusters += run.clusters
        self.blocks += run.clusters * run.mask.bit_count()

    @property
    def room(self) -> int:
        """How many further clusters fit."""
        return vma_layout.CLUSTERS_PER_EXTENT - self.clusters

    @property
    def digests(self) -> list[bytes]:
        """Of its non-zero clusters, in slot order."""
        return [digest for run in self.contents for digest in run.digests]


class ZeroRun(NamedTuple):
    """Zero clusters in a row, which take extents of their own."""

    drive_id: int
    first: int
    clusters: int


class EncodedFrame(NamedTuple):
    """A frame's bytes in the file, in pieces; their sum, the size of its content, and its seek table checksum."""

    pieces: Sequence[Buffer]
    size: int
    decompressed: int
    checksum: int


class CopiedFrame(NamedTuple):
    """A frame of another archive that holds whole clusters and nothing else: which ones, and their digests in order."""

    frame: EncodedFrame
    slots: Sequence[SlotRun]
    digests: Sequence[bytes]


@dataclass(slots=True)
class CopiedExtent:
    """Up to 58 clusters that lie in frames of other archives. ``blocks``: how many all the clusters have."""

    slots: list[SlotRun] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    frames: list[EncodedFrame] = field(default_factory=list)
    blocks: int = 0

    def add(self, copied: CopiedFrame) -> None:
        """Append a frame, for whose clusters there must be room."""
        self.slots += copied.slots
        self.digests += copied.digests
        self.frames.append(copied.frame)
        self.blocks += copied.frame.decompressed // vma_layout.BLOCK_SIZE

    @property
    def room(self) -> int:
        """How many further clusters fit."""
        return vma_layout.CLUSTERS_PER_EXTENT - len(self.digests)


Item: TypeAlias = Extent | ZeroRun | CopiedExtent


class Encoded(NamedTuple):
    """An item, ready to be written."""

    item: Item
    frames: Sequence[EncodedFrame]


def compression_parameters(level: int, frame_size: int) -> zstandard.ZstdCompressionParameters:
    """The parameters of a level, for frames of that size in bytes, whose tables fit a core's cache.

    Measured on ext4 images of program files in frames of 256 KiB, against zstd's own choice: at level 1 a hash table
    twice as large saves 1 % of the size and costs 1 % of the time; at level 3 smaller tables save 7 % of the time and
    cost nothing.
    """
    tuned = {1: {"min_match": 6, "hash_log": 15}, 3: {"hash_log": 16, "chain_log": 15}}.get(level, {})
    return zstandard.ZstdCompressionParameters.from_level(
        level, source_size=frame_size, write_checksum=True, write_content_size=True, **tuned
    )


class ArchiveEncoder:
    """Turns clusters into an archive.

    Fixed: header, level, frame size. ``level`` None writes the plain VMA, without index and seek table.
    Changing: ``ready`` (items to encode, oldest first), the open extents, what commit() has counted, and in the end
    ``digest``, of the directory; add and commit belong to one caller, encode may be called from any thread.
    """

    def __init__(
        self, header: Header, *, level: int | None = DEFAULT_LEVEL, frame_size: int = DEFAULT_FRAME_SIZE
    ) -> None:
        self._header_bytes = vma.encode_header(header)
        # As every reader will see it, names too, which what is told of the drives has to agree with.
        self.header = vma.decode_header(self._header_bytes, allow_delta=True)
        self.ready: list[Item] = []
        self.written = 0
        self.digest: bytes | None = None
        self._level, self._frame_size = level, frame_size
        self._open, self._copied = Extent(), CopiedExtent()
        self._seek_table = zs.SeekTable()
        self.index = index.IndexBuilder(0, 0)

    def start(self) -> bytes:
        """The bytes of the header: the first of the file."""
        if self._level is None:
            self.written = len(self._header_bytes)
            self.index = index.IndexBuilder(self.written, self.written)
            return self._header_bytes
        frame = _frame([memoryview(self._header_bytes)], self.compressor())
        self._seek_table.add(frame.size, frame.decompressed, frame.checksum)
        self.written = frame.size
        self.index = index.IndexBuilder(self.written, frame.decompressed)
        return b"".join(frame.pieces)

    # -- clusters in --

    def add(self, drive_id: int, first: int, runs: Iterable[ClusterRun]) -> None:
        """Take clusters in a row; items that are full appear in ``ready``."""
        for run in runs:
            rest = run
            while rest.clusters > (room := self._open.room):
                fitting, rest = rest.cut(room)
                self._add(drive_id, first, fitting)
                first += room
            self._add(drive_id, first, rest)
            first += rest.clusters

    def _add(self, drive_id: int, first: int, run: ClusterRun) -> None:
        self._open.add(drive_id, first, run)
        if not self._open.room:
            self.close_extent()

    def add_zeros(self, drive_id: int, first: int, count: int) -> None:
        """Take zero clusters in a row: they fill the open extent, then whole extents, then begin the next."""
        per_extent = vma_layout.CLUSTERS_PER_EXTENT
        end = first + count
        if self._open.clusters and count:
            filling = min(self._open.room, count)
            self._add(drive_id, first, zero_run(filling))
            first += filling
        whole_end = end - (end - first) % per_extent
        step = max(1, self._frame_size // vma_layout.EXTENT_HEADER_SIZE) * per_extent
        for start in range(first, whole_end, step):
            self.ready.append(ZeroRun(drive_id, start, min(step, whole_end - start)))
        if whole_end < end:
            self._add(drive_id, whole_end, zero_run(end - whole_end))

    def add_frame(self, copied: CopiedFrame) -> None:
        """Take a frame of another archive, which must have a checksum, and at most 58 clusters.

        Frames gather in an extent of their own: no order holds between them and other clusters.
        """
        if len(copied.digests) > self._copied.room:
            self._close_copied()
        self._copied.add(copied)

    def _close_copied(self) -> None:
        if self._copied.frames:
            self.ready.append(self._copied)
            self._copied = CopiedExtent()

    def close_extent(self) -> None:
        """Make items of what was gathered so far, full or not."""
        self._close_copied()
        if self._open.clusters:
            self.ready.append(self._open)
            self._open = Extent()

    # -- encoding, in any thread --

    @property
    def compresses(self) -> bool:
        """Whether encode() compresses: else it is quick."""
        return self._level is not None

    def compressor(self) -> zstandard.ZstdCompressor | None:
        """A compressor for encode(), to be used by one thread at a time; None where nothing is compressed."""
        if self._level is None:
            return None
        return zstandard.ZstdCompressor(compression_params=compression_parameters(self._level, self._frame_size))

    def encode(self, item: Item, compressor: zstandard.ZstdCompressor | None) -> Encoded:
        """Compress one item."""
        if isinstance(item, ZeroRun):
            return Encoded(item, [_frame([memoryview(self._zero_extents(item))], compressor)])
        if isinstance(item, CopiedExtent):
            return Encoded(item, [_frame([self._header_of(item)], compressor), *item.frames])
        return Encoded(item, [_frame(pieces, compressor) for pieces in self._cut(item)])

    def _zero_extents(self, run: ZeroRun) -> bytes:
        digest = EMPTY_EXTENT_DIGEST if self.header.extent_digests else None
        return vma.encode_zero_extents(self.header.uuid, run.drive_id, run.first, run.clusters, digest)

    def _header_of(self, extent: Extent | CopiedExtent) -> bytes:
        digest = extent_digest(extent.digests) if self.header.extent_digests else None
        return vma.encode_extent_header(self.header.uuid, vma.pack_slots(extent.slots), extent.blocks, digest)

    def _cut(self, extent: Extent) -> list[list[memoryview]]:
        """An extent's bytes in pieces of at most the frame size, but at least a cluster, cut between clusters.

        The header of an extent that needs several frames has one of its own: a frame that is one part of a buffer need
        not be put together, and no header is lost with data.
        """
        head = self._header_of(extent)
        frames = [[Part(head, 0, len(head))]]
        is_one_frame = len(head) + extent.blocks * vma_layout.BLOCK_SIZE <= self._frame_size
        room = self._frame_size - len(head) if is_one_frame else 0
        for run in extent.contents:
            size = run.mask.bit_count() * vma_layout.BLOCK_SIZE
            rest = run
            while rest.clusters * size > room:
                fitting = room // size
                if fitting:
                    before, rest = rest.cut(fitting)
                    _append(frames[-1], before.parts)
                frames.append([])
                room = max(self._frame_size, size)
            _append(frames[-1], rest.parts)
            room -= rest.clusters * size
        return [[memoryview(part.buffer)[part.start : part.end] for part in frame] for frame in frames]

    # -- bytes out, in order --

    def commit(self, encoded: Encoded) -> list[Buffer]:
        """The bytes that come next in the file."""
        item = encoded.item
        if isinstance(item, ZeroRun):
            size = sum(frame.decompressed for frame in encoded.frames)
            self.index.add_zero_extents(item.drive_id, item.first, item.clusters, size)
        else:
            self.index.add_extent(item.slots, item.digests)
        out: list[Buffer] = []
        for frame in encoded.frames:
            self.index.add_frame(frame.size, frame.decompressed)
            self._seek_table.add(frame.size, frame.decompressed, frame.checksum)
            self.written += frame.size
            out += frame.pieces
        if self._level is None:
            self.index.forget_segment()
        elif self.index.segment_is_full:
            out.append(self._segment())
        return out

    def _segment(self) -> bytes:
        frame = index.wrap(index.SEGMENT, self.index.take_segment())
        self.index.segment_written(len(frame))
        return self._skippable(frame)

    def _skippable(self, frame: bytes) -> bytes:
        self._seek_table.add(len(frame), 0, 0)
        self.written += len(frame)
        return frame

    def finish(self, about: dict[str, Any]) -> list[Buffer]:
        """The bytes that end the file: the last segment, the directory with ``about``, the seek table.

        What ``about`` tells of the drives and the segments is told anew: it is what was written, or the archive would
        contradict itself.
        """
        if self._level is None:
            return []
        out: list[Buffer] = []
        if not self.index.segment_is_empty:
            out.append(self._segment())
        directory = index.wrap(index.DIRECTORY, self.index.directory(self._fitting(about)))
        self.digest = frame_digest(directory)
        out.append(self._skippable(directory))
        table = self._seek_table.pieces()
        self.written += sum(map(len, table))
        return [*out, *table]

    def _fitting(self, about: dict[str, Any]) -> dict[str, Any]:
        """What is told of the archive; of very many unreadable places the first, for it must not grow without end."""
        counts = self.index.counts
        drives = [index.describe_drive(one.drive_id, one.name, one.size, counts) for one in self.header.drives]
        about = {**about, "drives": drives, "segments": self.index.segments_digest}
        places = about.get("unreadable", ())
        listed = len(places)
        while True:
            if listed < len(places):
                about |= {"unreadable": places[:listed], "unreadable_not_listed": len(places) - listed}
            if not listed or index.about_size(about) <= index.MAX_ABOUT:
                return about
            listed //= 2


def _append(frame: list[Part], parts: Iterable[Part]) -> None:
    """Append parts; neighbours in one buffer become one part, which saves copying them together."""
    for part in parts:
        last = frame[-1] if frame else None
        if last is not None and last.buffer is part.buffer and last.end == part.start:
            frame[-1] = Part(last.buffer, last.start, part.end)
        else:
            frame.append(part)


def _frame(pieces: Sequence[Buffer], compressor: zstandard.ZstdCompressor | None) -> EncodedFrame:
    if compressor is None:
        size = sum(map(len, pieces))
        return EncodedFrame(pieces, size, size, 0)
    content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    compressed = compressor.compress(content)
    # The last four bytes of a frame are the low half of XXH64 of its content: just what a seek table wants.
    checksum = int.from_bytes(compressed[-zs.CHECKSUM_SIZE :], "little")
    return EncodedFrame([compressed], len(compressed), len(content), checksum)
