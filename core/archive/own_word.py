"""What an archive says of itself, compared with what was found in it.

Index, seek table, and that every cluster is there once: the same IndexBuilder that the writer uses is fed with what was
read, and must come to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pybackup.formats import cluster_index as index
from pybackup.formats import vma_layout
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.cluster_lookup import Directory
from pybackup.formats.clusters import frame_digest
from pybackup.formats.errors import FormatError, UnsupportedError
from pybackup.formats.vma import DriveInfo, Header
from pybackup.formats.vma_stream import DecodedExtent
from pybackup.formats.zstd_seekable import SeekTableDigest, SeekTableSeen

from .checked_extent import CheckedExtent, stored_runs
from .damage import Damage, DamageFound
from .input import FrameSeen, SkippableSeen
from .seen_clusters import Budget, SeenClusters

MOST_TWICE = 100_000
"""Runs of clusters found twice, after which an archive is given up: it could go on with them without end."""


class OwnWord:
    """Told of all that is found in an archive, in its order; what does not agree with what it says becomes damage.

    Fixed: the header, where damage goes, and whether there can be an index that digests are there to compare with.
    Changing, by the one thread that reads: everything else.
    """

    def __init__(
        self,
        header: Header,
        rows: SeekTableDigest,
        builder: index.IndexBuilder,
        damage: DamageFound,
        *,
        compressed: bool,
        has_digests: bool,
    ) -> None:
        """``rows``: of the header's frames; ``compressed``: in frames that an index of ours can name."""
        self.about: dict[str, Any] | None = None
        self.directory_digest: bytes | None = None
        self.has_seek_table = False
        self._header, self._rows, self._index, self._damage = header, rows, builder, damage
        self._compressed, self._has_digests = compressed, has_digests
        self._indexable = True
        self._has_segments = self._has_directory = False
        self._vmstate_next: dict[int, int] = {}
        self._twice = 0
        budget = Budget()
        self._seen = {drive.drive_id: SeenClusters(drive.clusters, budget) for drive in header.drives}

    @property
    def counts(self) -> dict[int, index.DriveCounts]:
        """What was found of each drive, by its id."""
        return self._index.counts

    def no_index(self) -> None:
        """What was found is nothing that an index of ours can speak of."""
        self._indexable = False

    # -- what is found --

    def frame(self, one: FrameSeen) -> None:
        """A frame of VMA bytes has ended."""
        self._rows.add(one.compressed, one.decompressed, one.checksum)
        self._index.add_frame(one.compressed, one.decompressed)
        self._forget_what_is_overdue()

    def extent(self, checked: CheckedExtent) -> None:
        """An extent was read."""
        extent = checked.extent
        for drive_id, first, count, _ in extent.header.runs:
            self._see(drive_id, first, count)
        self._index.add_extent(extent.header.runs, checked.digests)
        self._forget_what_is_overdue()
        if not checked.sound:
            self._unsound(checked)
        elif None in extent.stored:
            self._forget_lost(extent)

    def _forget_what_is_overdue(self) -> None:
        """No index of ours speaks of so much at once: then none has to be compared with what was found."""
        if self._index.segment_is_overdue or self._index.directory_is_full:
            self._indexable = False
        if not self._compressed or not self._indexable:
            self._index.forget_segment()

    def _see(self, drive_id: int, first: int, count: int) -> None:
        seen = self._seen[drive_id]
        drive = self._header.by_id[drive_id]
        if self._header.may_end_early(drive) and first != self._vmstate_next.setdefault(drive_id, 0):
            self._spoil("the memory image is out of order", drive, first, count)
        for twice, number in seen.already(first, count):
            self._spoil("found twice", drive, twice, number)
            self._twice += 1
            if self._twice > MOST_TWICE:
                raise UnsupportedError("clusters are found twice again and again: no writer of archives made this")
        seen.add(first, count)
        self._vmstate_next[drive_id] = first + count

    def _spoil(self, what: str, drive: DriveInfo, first: int, count: int) -> None:
        self._damage.note(Damage(what, drive.name, first, count))

    def _unsound(self, checked: CheckedExtent) -> None:
        """The extent's digest is wrong: any of its stored clusters may be, and which cannot be told."""
        what = f"data does not match its digest (extent at byte {checked.extent.at} of the VMA stream)"
        for drive_id, first, count in stored_runs(checked.extent):
            self._spoil(what, self._header.by_id[drive_id], first, count)

    def _forget_lost(self, extent: DecodedExtent) -> None:
        """Clusters whose bytes are lost count as missing."""
        for slot, stored in zip(extent.header.slots, extent.stored, strict=True):
            if stored is None:
                self._seen[slot.drive_id].remove(slot.cluster)

    # -- the end --

    def end(self) -> None:
        """All was read: nothing may be missing."""
        self._check_complete()
        if self._has_segments and not self.has_seek_table:
            self._damage.spoil("the archive's end is missing: its index is not complete")

    def _check_complete(self) -> None:
        for drive in self._header.drives:
            if self._header.is_delta or (self._header.may_end_early(drive) and not self._has_segments):
                continue
            for first, count in self._seen[drive.drive_id].missing():
                self._spoil("missing", drive, first, count)

    def ends_early(self) -> Iterator[tuple[str, int]]:
        """(name, bytes that are there) of drives that end before their size, as other writers' memory images may.

        Whether such an archive was cut off there, nobody can tell.
        """
        for drive in self._header.drives:
            clusters = self._vmstate_next.get(drive.drive_id, 0)
            if self._header.may_end_early(drive) and clusters < drive.clusters:
                yield drive.name, clusters * vma_layout.CLUSTER_SIZE

    # -- what the archive says --

    def skippable(self, seen: SkippableSeen) -> None:
        """A skippable frame: a piece of the index, or nothing of ours."""
        magic = int.from_bytes(seen.content[:4], "little")
        try:
            if self.has_seek_table:
                raise FormatError("something follows the seek table", seen.offset)
            if magic == zs.INDEX_MAGIC:
                self._check_index_frame(seen)
        except FormatError as error:
            self._damage.spoil(error)
        self._rows.add(len(seen.content), 0, 0)

    def _check_index_frame(self, seen: SkippableSeen) -> None:
        kind, content = index.unwrap(seen.content, seen.offset)
        if kind == index.SEGMENT:
            self._has_segments = True
            expected = self._index.take_segment()
            if not self._index.directory_is_full:
                self._index.segment_written(len(seen.content))
        else:
            self._has_directory = True
            self.about = Directory.decode(content).about
            self.directory_digest = frame_digest(seen.content)
            expected = self._index.directory(self.about)
            self._check_about(seen.offset)
        if self._compares and not (self._indexable and expected == content):
            what = "a segment" if kind == index.SEGMENT else "the directory"
            raise FormatError(f"{what} of the index does not agree with the data", seen.offset)

    def _check_about(self, offset: int) -> None:
        """What the directory tells of the drives, and of the segments where it does, must be what was found."""
        assert self.about is not None
        told = self.about.get("drives")
        counts = self._index.counts
        found = [index.describe_drive(one.drive_id, one.name, one.size, counts) for one in self._header.drives]
        alike = isinstance(told, list) and len(told) == len(found) and all(map(_agrees, told, found))
        alike = alike and self.about.get("segments", self._index.segments_digest) == self._index.segments_digest
        if self._compares and not alike:
            raise FormatError("the directory of the index does not agree with the data", offset)

    @property
    def _compares(self) -> bool:
        """Whether all was found that an index must agree with: not after damage, and not without digests."""
        return self._damage.is_none and self._has_digests

    def seek_table(self, seen: SeekTableSeen) -> None:
        """The seek table, which is the end of an archive."""
        if self.has_seek_table:
            self._damage.spoil(f"there is a second seek table at byte {seen.offset}")
        self.has_seek_table = True
        agrees = (seen.rows, seen.digest) == (self._rows.rows, self._rows.digest())
        # Of others that compress so, who know no index, a table need not be as ours are.
        is_ours = self._has_segments or (seen.names_index and self._header.extent_digests)
        if self._damage.is_none and is_ours and not agrees:
            self._damage.spoil(f"the seek table does not agree with the frames (at byte {seen.offset} of the archive)")
        if is_ours and not self._has_directory:
            self._damage.spoil(f"the index has no directory (at byte {seen.offset} of the archive)")
        self._rows.add(seen.length, 0, 0)


def _agrees(told: object, found: dict[str, Any]) -> bool:
    """Whether all that was found is told so; more may be told."""
    return isinstance(told, dict) and all(told.get(key) == value for key, value in found.items())
