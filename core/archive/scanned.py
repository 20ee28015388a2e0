"""A plain archive without an index, as other writers make them: where its clusters lie is found in one scan.

Only the extents' headers are read, 512 bytes each, and checked as who reads an archive through checks them: MD5s, that
every cluster is there, and none twice. What is kept is a row for clusters in a row of an extent; the headers are read
again when something of their extents is looked for. Of data that other programs stored nothing can be proved, for they
store no digests; an extent of ours is read whole, and compared with its digest.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from operator import le

from pybackup.core.errors import ArchiveError
from pybackup.formats import vma, vma_layout
from pybackup.formats.buffer import Buffer
from pybackup.formats.cluster_index import IndexBuilder, describe_drive
from pybackup.formats.cluster_lookup import Directory, FramePlace, Segment
from pybackup.formats.clusters import ZERO_CLUSTER, expand
from pybackup.formats.errors import FormatError
from pybackup.formats.vma import ExtentHeader, Header
from pybackup.formats.vma_layout import BLOCK_SIZE, CLUSTER_DIGEST_SIZE, EXTENT_HEADER_SIZE
from pybackup.formats.vma_stream import DecodedExtent
from pybackup.formats.zstd_seekable import SeekTableDigest

from .checked_extent import CheckedExtent, check
from .damage import DamageFound, place_told
from .index import ArchiveIndex, NoIndexError, Run
from .kept import Kept, NotKeptError
from .own_word import OwnWord
from .seen_clusters import TooScatteredError

MOST_ROWS = 2 << 20
"""Of 16 bytes each, and as much again while they are sorted: 8 TiB in order, or 2 million clusters that lie alone."""
EMPTY_AHEAD = 64 << 10
"""Bytes read at once where extents have no data: their headers lie one behind the other."""
_NO_DIGEST = bytes(CLUSTER_DIGEST_SIZE)


class _Rows:
    """Of one drive: clusters in a row, and the extent that has them; 0 for zeros. Changing, until they are sorted."""

    def __init__(self) -> None:
        self.firsts, self.counts, self.extents = array("I"), array("I"), array("Q")

    def add(self, first: int, count: int, extent: int) -> bool:
        """Add clusters; False where they made the row before longer."""
        if not extent and self.firsts and not self.extents[-1] and self.firsts[-1] + self.counts[-1] == first:
            self.counts[-1] += count
            return False
        self.firsts.append(first)
        self.counts.append(count)
        self.extents.append(extent)
        return True

    def sort(self) -> None:
        """By the first cluster; mostly they have that order."""
        if all(map(le, self.firsts, islice(self.firsts, 1, None))):
            return
        order = array("I", sorted(range(len(self.firsts)), key=self.firsts.__getitem__))
        self.firsts = array("I", map(self.firsts.__getitem__, order))
        self.counts = array("I", map(self.counts.__getitem__, order))
        self.extents = array("Q", map(self.extents.__getitem__, order))

    def between(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(first cluster, clusters, extent) of the rows that touch [first, end), in order."""
        for at in range(max(0, bisect_right(self.firsts, first) - 1), bisect_left(self.firsts, end)):
            if self.firsts[at] + self.counts[at] > first:
                yield self.firsts[at], self.counts[at], self.extents[at]


class ScannedIndex(ArchiveIndex):
    """Random access to a plain archive, from any thread. Fixed, beside what every index has: the rows.

    Frames are extents, whole, where their digests are to be compared, or where each read is a request to a store.
    """

    def __init__(
        self,
        pread: Callable[[int, int], bytes],
        size: int,
        name: str,
        *,
        kept: Kept | None = None,
        whole_extents: bool = False,
    ) -> None:
        """Scan the archive (ArchiveError; NoIndexError where it is not plain)."""
        self._rows: dict[int, _Rows] = {}
        self._row_count = 0
        self._whole_extents = whole_extents
        super().__init__(pread, size, name, kept=kept)
        self._whole_extents |= self.header.extent_digests
        try:
            self._scan()
        except TooScatteredError as error:
            raise ArchiveError(f"{name}: {error}") from None
        except FormatError as error:
            raise ArchiveError(f"{name} is damaged: {place_told(error)}") from None

    def _read_directory(self) -> Directory:
        """What the scan will tell."""
        self.digest = None
        start = self.read(0, min(self.size, vma_layout.HEADER_START.size))
        if start[:4] != vma_layout.MAGIC:
            raise NoIndexError(f"{self.name} has no index")
        self._header_size = vma.header_length(start)
        return Directory(b"", b"", {})

    def _read_header(self) -> Header:
        if self._header_size > self.size:
            raise FormatError("the archive ends within its header", self.size)
        return vma.decode_header(self.read(0, self._header_size))

    # -- the scan --

    def _scan(self) -> None:
        builder = IndexBuilder(0, self._header_size)
        word = OwnWord(
            self.header, SeekTableDigest(), builder, DamageFound(tolerant=False), compressed=False, has_digests=False
        )
        self._rows = {drive.drive_id: _Rows() for drive in self.header.drives}
        for at, extent in self._extents():
            word.extent(CheckedExtent(DecodedExtent(at, extent, ()), [], sound=True))
            self._note(at, extent)
        word.end()
        for name, present in word.ends_early():
            drive, first = self.header.by_name[name], present // vma_layout.CLUSTER_SIZE
            self._rows[drive.drive_id].add(first, drive.clusters - first, 0)
        for rows in self._rows.values():
            rows.sort()
        told = [describe_drive(one.drive_id, one.name, one.size, word.counts) for one in self.header.drives]
        self.directory = Directory(b"", b"", {"drives": told})

    def _extents(self) -> Iterator[tuple[int, ExtentHeader]]:
        """Every extent: where it begins, and its header (FormatError)."""
        at, ahead, ahead_at = self._header_size, b"", self._header_size
        while at < self.size:
            if not ahead_at <= at <= ahead_at + len(ahead) - EXTENT_HEADER_SIZE:
                size = EMPTY_AHEAD if ahead and at == ahead_at + len(ahead) else EXTENT_HEADER_SIZE
                ahead, ahead_at = self.read(at, min(size, self.size - at)), at
            extent = self._decode(ahead[at - ahead_at : at - ahead_at + EXTENT_HEADER_SIZE], at)
            yield at, extent
            at += EXTENT_HEADER_SIZE + extent.data_size

    def _decode(self, content: bytes, at: int) -> ExtentHeader:
        if len(content) < EXTENT_HEADER_SIZE:
            raise FormatError("the archive ends in the middle of an extent", at)
        extent = vma.decode_extent_header(content, self.header, at)
        if at + EXTENT_HEADER_SIZE + extent.data_size > self.size:
            raise FormatError("the archive ends in the middle of an extent", at)
        return extent

    def _note(self, at: int, extent: ExtentHeader) -> None:
        """Remember where clusters lie: those of a drive in a row together, whatever lies between them."""
        rows: dict[int, list[list[int]]] = {}
        for drive_id, first, count, mask in extent.runs:
            own = rows.setdefault(drive_id, [])
            if own and own[-1][0] + own[-1][1] == first:
                own[-1][1] += count
                own[-1][2] |= mask
            else:
                own.append([first, count, mask])
        for drive_id, found in rows.items():
            for first, count, mask in found:
                self._row_count += self._rows[drive_id].add(first, count, at if mask else 0)
        if self._row_count > MOST_ROWS:
            raise ArchiveError(
                f"the clusters of {self.name} lie too scattered to be looked up without an index;"
                " `pybackup merge` makes an archive with one of it"
            )

    # -- the map --

    def runs_between(self, drive_id: int, first: int, end: int) -> list[Run]:
        """What the archive says of clusters [first, end) of a drive, in their order."""
        found: list[Run] = []
        for start, count, extent in self._rows[drive_id].between(first, end):
            if not extent:
                found.append(Run(start, count, None, 0).within(first, end))
                continue
            segment = self._segment_at(extent)
            low, high = max(start, first), min(start + count, end)
            for one, clusters, number in segment.runs_between(drive_id, low, high):
                run = Run(one, clusters, segment if number >= 0 else None, max(0, number))
                found.append(run.within(low, high))
        return found

    def locate(self, drive_id: int, cluster: int, *, now: bool = False) -> tuple[Segment | None, int] | None:
        """As of every index; now only where zeros are listed, for the rest is told by the extent."""
        if now and any(extent for _, _, extent in self._rows[drive_id].between(cluster, cluster + 1)):
            raise NotKeptError
        for run in self.runs_between(drive_id, cluster, cluster + 1):
            return run.segment, run.number
        return None

    def run_at(self, drive_id: int, cluster: int) -> tuple[int, Segment | None, int]:
        """As of every index; the run is told no longer than it is in its extent."""
        for run in self.runs_between(drive_id, cluster, cluster + 1):
            return 1, run.segment, run.number
        raise ArchiveError(f"{self.name} is damaged: cluster {cluster} of drive {drive_id} is missing")

    def _segment_at(self, at: int) -> Segment:
        return self.kept.segments.get((id(self), at), partial(self._read_extent_header, at))

    def _read_extent_header(self, at: int) -> Segment:
        """The extent as an index would tell of it, but for the digests."""
        try:
            extent = self._decode(self.read(at, EXTENT_HEADER_SIZE), at)
            builder = IndexBuilder(at, at)
            builder.add_extent(extent.runs, [_NO_DIGEST] * sum(1 for slot in extent.slots if slot.mask))
            size = EXTENT_HEADER_SIZE + extent.data_size
            builder.add_frame(size, size)
            return Segment(builder.take_segment())
        except FormatError as error:
            raise ArchiveError(f"{self.name} is damaged: {place_told(error)}") from None

    # -- the data --

    def read_stored(self, segment: Segment, number: int, drive_id: int, cluster: int) -> bytes:
        """The 65536 bytes of a stored cluster; of ours, its extent's digest was compared (ArchiveError)."""
        stored = segment.stored(number)
        if not stored.mask:
            return ZERO_CLUSTER
        try:
            return expand(stored.mask, self._vma_bytes(segment, stored.vma_offset, stored.mask.bit_count()))
        except FormatError as error:
            told = f"{place_told(error)}: drive {drive_id}, cluster {cluster}"
            raise ArchiveError(f"{self.name} is damaged: {told}") from None

    def _vma_bytes(self, segment: Segment, offset: int, blocks: int) -> Buffer:
        if self._whole_extents:
            return super()._vma_bytes(segment, offset, blocks)
        return self.read(offset, blocks * BLOCK_SIZE)

    def _read_frame(self, place: FramePlace) -> bytes:
        """An extent, with its header: a plain archive is its own VMA stream."""
        self.check_place(place)
        content = self.read(place.file_offset, place.compressed)
        if self.header.extent_digests:
            self._check_digest(content, place.file_offset)
        return content

    def _check_digest(self, content: bytes, at: int) -> None:
        extent = self._decode(content[:EXTENT_HEADER_SIZE], at)
        stored: list[memoryview] = []
        view, position = memoryview(content), EXTENT_HEADER_SIZE
        for slot in extent.slots:
            size = slot.mask.bit_count() * BLOCK_SIZE
            stored.append(view[position : position + size])
            position += size
        if position != len(content) or not check(DecodedExtent(at, extent, tuple(stored))).sound:
            raise FormatError("data does not match its digest (of an extent)", at)
