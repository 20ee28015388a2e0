"""An archive opened at any place, by its index: where every cluster lies, without reading the rest.

Nothing here is read before it is needed: the header, the directory, then segments as look-ups ask for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from pybackup.core.errors import ArchiveError
from pybackup.formats import cluster_index as index
from pybackup.formats import vma
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.archive import MAX_FRAME_SIZE
from pybackup.formats.buffer import Buffer
from pybackup.formats.cluster_lookup import Directory, FramePlace, Segment, SegmentPlace, StoredCluster
from pybackup.formats.clusters import ZERO_CLUSTER, frame_digest
from pybackup.formats.errors import FormatError, UnsupportedError
from pybackup.formats.vma import Header
from pybackup.formats.vma_layout import BLOCK_SIZE, MAX_HEADER_WRITTEN

from .input import decompress_frame
from .kept import Kept, KeptFrame, NotKeptError, prove
from .read_ahead import Sized, in_order

MAX_INDEX_FRAME = zs.MAX_SKIPPABLE[zs.INDEX_MAGIC]
MAX_SEGMENT_FRAME = zs.most_compressed(index.MAX_CONTENT[index.SEGMENT])
SEGMENTS_AHEAD, SEGMENTS_AHEAD_SIZE = 3, 16 << 20
"""Segments read ahead when all are wanted, and bytes that they may take in the file."""
MOST_PARTS = 16
"""Frames that hold one cluster: ours lie in one, and hardly more can be in any archive that is not made to hurt."""
MOST_LOOKED_NOW = 16
"""Segments that are asked for one cluster without a thread: more can speak of one only in an index made to hurt."""
HEADER_STEP = 16 << 10
"""Bytes: a header without large configurations takes less than a kilobyte."""


class NoIndexError(ArchiveError):
    """The archive may be sound, but it has no index."""


class Run(NamedTuple):
    """Clusters in a row of a drive: zeros, or stored ones, whose numbers in their segment begin with ``number``."""

    first: int
    clusters: int
    segment: Segment | None
    number: int

    @property
    def end(self) -> int:
        """The cluster behind the last."""
        return self.first + self.clusters

    def within(self, first: int, end: int) -> Run:
        """What of it lies in [first, end), where something does."""
        low, high = max(self.first, first), min(self.end, end)
        return Run(low, high - low, self.segment, self.number + low - self.first)


class ArchiveIndex:
    """Random access to one archive, from any thread.

    Fixed: header, directory and its digest (None where a scan stands for it), and ``pread(offset, length)``, which
    gives exactly the bytes asked for or raises OSError. Changing: what is kept of segments and frames.
    """

    def __init__(
        self,
        pread: Callable[[int, int], bytes],
        size: int,
        name: str,
        *,
        allow_delta: bool = False,
        kept: Kept | None = None,
    ) -> None:
        """Read header and directory (ArchiveError; NoIndexError where there is none)."""
        self.name, self.size = name, size
        self.digest: bytes | None
        self._read, self._allow_delta = pread, allow_delta
        self.kept = kept or Kept()
        try:
            self.directory = self._read_directory()
            self.header: Header = self._read_header()
        except UnsupportedError as error:
            raise ArchiveError(f"{name}: {error.what}") from error
        except FormatError as error:
            raise ArchiveError(f"{name} is damaged: {error}") from None

    def _read_directory(self) -> Directory:
        tail_size = zs.SEEK_FOOTER.size + zs.SEEK_ROW.size
        if self.size < tail_size:
            raise NoIndexError(f"{self.name} has no index")
        tail = self.read(self.size - tail_size, tail_size)
        table_size = zs.SeekTable.size_from_footer(tail[zs.SEEK_ROW.size :], self.size)
        compressed, decompressed, _ = zs.SEEK_ROW.unpack_from(tail)
        if table_size is None or decompressed:
            raise NoIndexError(f"{self.name} has no index")
        offset = self.size - table_size - compressed
        if offset < 0 or compressed > MAX_INDEX_FRAME:
            raise FormatError("the seek table is damaged", self.size - table_size)
        frame = self._index_frame(offset, compressed)
        kind, content = index.unwrap(frame, offset)
        if kind != index.DIRECTORY:
            raise FormatError("the index has no directory", offset)
        self.digest = frame_digest(frame)
        return Directory.decode(content)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file (ArchiveError); any thread may call this."""
        try:
            return self._read(offset, length)
        except OSError as error:
            raise ArchiveError(f"cannot read {self.name} at byte {offset}: {error.strerror or error}") from error

    def _index_frame(self, offset: int, length: int) -> bytes:
        frame = self.read(offset, length)
        magic, size = zs.SKIPPABLE_HEADER.unpack_from(frame) if len(frame) >= zs.SKIPPABLE_HEADER.size else (0, 0)
        if magic != zs.INDEX_MAGIC or size != length - zs.SKIPPABLE_HEADER.size:
            raise FormatError("an index frame is damaged", offset)
        return frame

    def _read_header(self) -> Header:
        feed = zs.ByteFeed(self._from_start(), chunk=HEADER_STEP)
        frame = zs.next_frame(feed, MAX_HEADER_WRITTEN)
        if not isinstance(frame, zs.Frame) or frame.magic is not None:
            raise FormatError("the header is not a frame of its own", 0)
        content = decompress_frame(frame.content, frame.content_size, 0)
        return vma.decode_header(content, allow_delta=self._allow_delta)

    def _from_start(self) -> Callable[[int], bytes]:
        """What reads on from the beginning of the file."""
        at = 0

        def read(size: int) -> bytes:
            nonlocal at
            length = min(size, self.size - at)
            at += length
            return self.read(at - length, length)

        return read

    # -- the map --

    def segments(self, places: Iterable[SegmentPlace], pool: ThreadPoolExecutor) -> Iterator[Segment]:
        """These segments in their order, read ahead in the pool; none is kept."""
        calls = (Sized(place.length, partial(self._read_segment, place)) for place in places)
        return in_order(pool, calls, SEGMENTS_AHEAD, SEGMENTS_AHEAD_SIZE)

    def _read_segment(self, place: SegmentPlace) -> Segment:
        if place.length > MAX_SEGMENT_FRAME or place.file_offset + place.length > self.size:
            raise ArchiveError(f"{self.name} is damaged: the directory names a place outside the file")
        try:
            kind, content = index.unwrap(self._index_frame(place.file_offset, place.length), place.file_offset)
            if kind != index.SEGMENT:
                raise FormatError("an index frame is not a segment", place.file_offset)
            segment = Segment(content)
            self._check_runs(segment, place.file_offset)
            return segment
        except FormatError as error:
            raise ArchiveError(f"{self.name} is damaged: {error}") from None

    def _check_runs(self, segment: Segment, offset: int) -> None:
        for drive_id, _, first, count in segment.runs:
            drive = self.header.by_id.get(drive_id)
            if drive is None or first + count > drive.clusters:
                raise FormatError("a segment of the index names clusters that no drive has", offset)

    def _segment(self, place: SegmentPlace) -> Segment:
        return self.kept.segments.get((id(self), place.file_offset), partial(self._read_segment, place))

    def _kept_segment(self, place: SegmentPlace) -> Segment:
        segment = self.kept.segments.peek((id(self), place.file_offset))
        if segment is None:
            raise NotKeptError
        return segment

    def locate(self, drive_id: int, cluster: int, *, now: bool = False) -> tuple[Segment | None, int] | None:
        """What runs_between() says of one cluster, without lists: (segment or None for zeros, number), or None.

        ``now``: from memory alone, else NotKeptError.
        """
        segment_of = self._kept_segment if now else self._segment
        located: tuple[Segment | None, int] | None = None
        for looked, place in enumerate(self.directory.covering(drive_id, cluster)):
            if now and looked == MOST_LOOKED_NOW:
                raise NotKeptError
            segment = segment_of(place)
            found = segment.run_at(drive_id, cluster)
            if found is None:
                continue
            if located is not None:
                raise self._twice(drive_id, cluster)
            _, kind, number = found
            located = (segment, number) if kind == index.RUN_STORED else (None, 0)
        return located

    def _twice(self, drive_id: int, cluster: int) -> ArchiveError:
        return ArchiveError(f"{self.name} is damaged: the index has cluster {cluster} of drive {drive_id} twice")

    def runs_between(self, drive_id: int, first: int, end: int) -> list[Run]:
        """What the archive says of clusters [first, end) of a drive, in their order; nothing of those it lacks."""
        found: list[Run] = []
        for place in self.directory.overlapping(drive_id, first, end):
            segment = self._segment(place)
            for start, count, number in segment.runs_between(drive_id, first, end):
                run = Run(start, count, segment if number >= 0 else None, max(0, number))
                found.append(run.within(first, end))
        found.sort(key=_first_of)
        for before, run in pairwise(found):
            if run.first < before.end:
                raise self._twice(drive_id, run.first)
        return found

    def run_at(self, drive_id: int, cluster: int) -> tuple[int, Segment | None, int]:
        """(clusters alike from ``cluster`` on, segment or None for zeros, number of the stored cluster)."""
        for place in self.directory.covering(drive_id, cluster):
            segment = self._segment(place)
            found = segment.run_at(drive_id, cluster)
            if found is not None:
                left, kind, number = found
                return left, (segment if kind == index.RUN_STORED else None), number
        raise ArchiveError(f"{self.name} is damaged: the index does not know cluster {cluster} of drive {drive_id}")

    # -- the data --

    def read_cluster(self, drive_id: int, cluster: int) -> bytes:
        """The 65536 bytes of a cluster, checked against its digest (ArchiveError)."""
        _, segment, number = self.run_at(drive_id, cluster)
        return ZERO_CLUSTER if segment is None else self.read_stored(segment, number, drive_id, cluster)

    def read_stored(self, segment: Segment, number: int, drive_id: int, cluster: int) -> bytes:
        """The 65536 bytes of a stored cluster of a segment, checked against its digest (ArchiveError).

        Whose digest was compared once is not proved again, as long as its frame is kept.
        """
        try:
            stored = segment.stored(number)
            if not stored.mask:
                return self._proved(segment, stored)
            place = segment.frame_of(stored.vma_offset)
            frame, at = self._frame(place), stored.vma_offset - place.vma_offset
            if frame.holds(at, stored):
                return frame.read(at, stored)
            return self._proved(segment, stored)
        except FormatError as error:
            raise ArchiveError(f"{self.name} is damaged: {error}: drive {drive_id}, cluster {cluster}") from None

    def read_kept(self, segment: Segment, number: int) -> bytes:
        """As read_stored(), where the frame is kept that holds all of the cluster; else NotKeptError, of damage too."""
        try:
            stored = segment.stored(number)
            place = segment.frame_of(stored.vma_offset)
            frame, at = self.kept.frames.peek((id(self), place.file_offset)), stored.vma_offset - place.vma_offset
            if frame is not None and frame.holds(at, stored):
                return frame.read(at, stored)
        except FormatError:  # read_stored() tells of it
            pass
        raise NotKeptError

    def _proved(self, segment: Segment, stored: StoredCluster) -> bytes:
        content = self._vma_bytes(segment, stored.vma_offset, stored.mask.bit_count())
        return prove(stored, content)

    def _vma_bytes(self, segment: Segment, offset: int, blocks: int) -> Buffer:
        parts: list[bytes | memoryview] = []
        end = offset + blocks * BLOCK_SIZE
        while offset < end:
            place = segment.frame_of(offset)
            at = offset - place.vma_offset
            part = self._frame(place).content[at : at + end - offset]
            if not part or len(parts) == MOST_PARTS:
                raise FormatError("the index names a place outside its frames", offset)
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _frame(self, place: FramePlace) -> KeptFrame:
        return self.kept.frames.get((id(self), place.file_offset), lambda: KeptFrame(self._read_frame(place)))

    def kept_frame(self, place: FramePlace) -> bytes | memoryview | None:
        """What a frame holds, where that is kept."""
        kept = self.kept.frames.peek((id(self), place.file_offset))
        return None if kept is None else kept.content

    def keep_frame(self, place: FramePlace, content: memoryview) -> None:
        """Keep what a frame holds, which was decoded and found sound."""
        self.kept.frames.put((id(self), place.file_offset), KeptFrame(content))

    def check_place(self, place: FramePlace) -> None:
        """FormatError where a frame is larger than any of ours, or does not lie in the file."""
        too_large = place.decompressed > MAX_FRAME_SIZE or place.compressed > zs.most_compressed(place.decompressed)
        if too_large or place.file_offset + place.compressed > self.size:
            raise FormatError("the index names a place outside the file", place.file_offset)

    def _read_frame(self, place: FramePlace) -> bytes:
        self.check_place(place)
        content = memoryview(self.read(place.file_offset, place.compressed))
        return decompress_frame(content, place.decompressed, place.file_offset)


def _first_of(run: Run) -> int:
    return run.first
