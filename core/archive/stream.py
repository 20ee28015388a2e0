"""An archive read from its beginning to its end: the header, then every extent, checked.

What the archive says about itself in several places (extent digests, cluster index, seek table) is compared with what
was found: the same IndexBuilder that the writer uses is fed with what was read, and must come to the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from pybackup.core.errors import ArchiveError
from pybackup.formats import cluster_index as index
from pybackup.formats import vma, vma_layout
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.cluster_lookup import Directory
from pybackup.formats.errors import FormatError, NotAnArchiveError, UnsupportedError
from pybackup.formats.vma import DriveInfo, Header
from pybackup.formats.vma_stream import DecodedExtent, VmaStream
from pybackup.formats.zstd_seekable import SeekTableSeen

from .input import Bytes, FrameSeen, Lost, Piece, SkippableSeen, pieces_of
from .seen_clusters import Budget, SeenClusters, TooScatteredError

EXTENTS_AHEAD = 4
MOST_IN_ORDER = 256
"""Frames and extents that wait for an extent whose digests are computed."""
MOST_DAMAGE = 1000
"""Damage that is listed; of more there is only the number."""
MOST_TWICE = 100_000
"""Runs of clusters found twice, after which an archive is given up: it could go on with them without end."""


class Damage(NamedTuple):
    """Something wrong in an archive: where in the file (or in the VMA stream), and which clusters it concerns."""

    what: str
    drive: str | None = None
    first: int | None = None
    clusters: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``offset`` and ``length`` are bytes of the drive."""
        if self.drive is None or self.first is None or self.clusters is None:
            return {"what": self.what}
        size = vma_layout.CLUSTER_SIZE
        return {
            "what": self.what,
            "drive": self.drive,
            "first_cluster": self.first,
            "clusters": self.clusters,
            "offset": self.first * size,
            "length": self.clusters * size,
        }

    def __str__(self) -> str:
        if self.drive is None or self.first is None or self.clusters is None:
            return self.what
        start, end = self.first * vma_layout.CLUSTER_SIZE, (self.first + self.clusters) * vma_layout.CLUSTER_SIZE
        last = self.first + self.clusters - 1
        return f"{self.what}: drive {self.drive}, clusters {self.first} to {last} (bytes {start} to {end - 1})"


class Digests(Enum):
    """Which extents' digests are computed and compared."""

    ALL = "all"
    UNPROVEN = "unproven"
    """Those whose bytes no zstd checksum has proved: enough to trust the data, but not to check the index."""
    NONE = "none"


class CheckedExtent(NamedTuple):
    """An extent and the digests of its non-zero clusters; ``sound`` says whether they agree with the archive's."""

    extent: DecodedExtent
    digests: list[bytes]
    sound: bool


_Ordered: TypeAlias = Future[CheckedExtent] | CheckedExtent | SkippableSeen | FrameSeen | SeekTableSeen


class ArchiveStream:
    """Reads one archive once, front to back.

    Fixed: how to read, and whether damage ends it (ArchiveError) or is gathered in ``damage``. Changing, by the one
    thread that iterates: everything else.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        name: str,
        pool: ThreadPoolExecutor,
        *,
        stop: Callable[[], None] = lambda: None,
        size: int | None = None,
        tolerant: bool = False,
        digests: Digests = Digests.ALL,
        allow_delta: bool = False,
    ) -> None:
        """``stop``: makes a ``read`` that waits fail, from any thread. ``size``: bytes of the archive, if known.

        ``allow_delta``: what the parent has may lack.
        """
        self.name, self.stop = name, stop
        self.stored: dict[str, int] = {}
        self._size, self._read = size, 0
        self.damage: list[Damage] = []
        self.not_listed = 0
        self.about: dict[str, Any] | None = None
        self.has_seek_table = False
        self._pool, self._tolerant, self._digests = pool, tolerant, digests
        self._ordered: deque[_Ordered] = deque()
        self._extents_ahead = 0
        self._proven = self._all_checked = True
        self._allow_delta = allow_delta
        self._seek_table = zs.SeekTableDigest()
        self._intact = self._indexable = True
        self._has_segments = self._has_directory = False
        self._vmstate_next: dict[int, int] = {}
        self._twice = 0
        try:
            self._open(read)
        except (NotAnArchiveError, UnsupportedError) as error:
            raise ArchiveError(f"{name}: {error.what}") from None
        except FormatError as error:
            raise ArchiveError(f"{name}: {error}") from None
        except OSError as error:
            raise ArchiveError(f"cannot read {name}: {error.strerror or error}") from error

    @property
    def consumed(self) -> tuple[int, int] | None:
        """(done, whole) bytes of the archive, where its size is known."""
        return None if self._size is None else (self._read, self._size)

    # -- the header --

    def _open(self, read: Callable[[int], bytes]) -> None:
        def counted(at_most: int) -> bytes:
            content = read(at_most)
            self._read += len(content)
            return content

        self.compression, self._pieces = pieces_of(counted, self._pool, tolerant=self._tolerant)
        start = memoryview(self._header_bytes())
        self.header: Header = vma.decode_header(start[: self._header_size], allow_delta=self._allow_delta)
        self.index = index.IndexBuilder(self._header_end, self._header_size)
        called = "" if self.compression == "vma" else "the VMA stream"
        self._stream = VmaStream(self.header, self._header_size, tolerant=self._tolerant, called=called)
        self._leftover = bytes(start[self._header_size :])
        budget = Budget()
        self._seen = {drive.drive_id: SeenClusters(drive.clusters, budget) for drive in self.header.drives}

    def _header_bytes(self) -> bytearray:
        """The content of pieces until the header is complete."""
        self._header_size, self._header_end = vma_layout.HEADER_START.size, 0
        have = bytearray()
        while len(have) < self._header_size:
            piece = next(self._pieces, None)
            if isinstance(piece, SkippableSeen | SeekTableSeen):
                self._indexable = False
                continue
            if piece is None:
                raise FormatError("the archive ends within its header", len(have))
            if isinstance(piece, Lost):
                raise FormatError(f"the header is lost: {piece.error.what}", piece.error.offset)
            self._note_proof(piece)
            if piece.frame is not None:
                self._add_row(piece.frame)
                self._header_end = piece.frame.offset + piece.frame.compressed
            elif self.compression != "vma":
                self._indexable = False
            have += piece.content
            if self._header_size == vma_layout.HEADER_START.size <= len(have):
                self._header_size = vma.header_length(have)
        if len(have) != self._header_size:
            self._indexable = False
        return have

    def _add_row(self, frame: FrameSeen) -> None:
        self._seek_table.add(frame.compressed, frame.decompressed, frame.checksum)

    # -- the extents --

    def __iter__(self) -> Iterator[CheckedExtent]:
        """Every extent in the order of the archive. ArchiveError at the first damage, unless tolerant."""
        try:
            yield from self._extents()
        except (UnsupportedError, TooScatteredError) as error:
            raise ArchiveError(f"{self.name}: {error}") from None
        except FormatError as error:
            raise ArchiveError(f"{self.name} is damaged: {error}") from None
        except OSError as error:
            raise ArchiveError(f"cannot read {self.name}: {error.strerror or error}") from error

    def extents(self, drive_ids: Collection[int]) -> Iterator[CheckedExtent]:
        """Every extent, also those of other drives: what comes in order has to be read through."""
        return iter(self)

    def _extents(self) -> Iterator[CheckedExtent]:
        yield from self._submit(self._stream.feed(self._leftover))
        for piece in self._pieces:
            yield from self._take(piece)
        yield from self._in_order(0)
        self._stream.finish()
        self._gather_damage()
        self._check_complete()
        if self._has_segments and not self.has_seek_table:
            self._spoil("the archive's end is missing: its index is not complete")

    def _take(self, piece: Piece) -> Iterator[CheckedExtent]:
        if isinstance(piece, SkippableSeen | SeekTableSeen):
            # It may be large, and what it tells has to agree with all that came before it.
            self._ordered.append(piece)
            yield from self._in_order(0)
            return
        if isinstance(piece, Lost):
            self._spoil(str(piece.error))
            if piece.size is None:
                self._stream.feed_break()
            else:
                yield from self._submit(self._stream.feed_lost(piece.size))
            return
        self._note_proof(piece)
        yield from self._submit(self._stream.feed(piece.content))
        if piece.frame is not None:
            self._ordered.append(piece.frame)
            yield from self._in_order(EXTENTS_AHEAD)
        elif self.compression != "vma":
            self._indexable = False

    def _note_proof(self, piece: Bytes) -> None:
        """A whole frame with a checksum proves its bytes; after one piece without, extents may have unproven parts."""
        self._proven = self._proven and piece.frame is not None and piece.frame.checksum != 0
        self._all_checked = self._all_checked and piece.checked

    @property
    def protects_data(self) -> bool:
        """Whether a digest or a checksum has proved all data that was read; false of what no bit flipped would show."""
        return self.header.extent_digests or self._all_checked

    def _submit(self, extents: Iterator[DecodedExtent]) -> Iterator[CheckedExtent]:
        """Have the digests of extents computed; gives those that were before them, one by one as there are too many."""
        for extent in extents:
            self._extents_ahead += 1
            if not extent.header.data_size:
                self._ordered.append(CheckedExtent(extent, [], extent.matches([])))
            elif self._digests is Digests.NONE or (self._digests is Digests.UNPROVEN and self._proven):
                self._ordered.append(CheckedExtent(extent, [], sound=True))
            else:
                self._ordered.append(self._pool.submit(_check, extent))
            yield from self._in_order(EXTENTS_AHEAD)
        self._gather_damage()

    def _gather_damage(self) -> None:
        """Make our damage of what the stream complains about."""
        for error in self._stream.damage:
            self._spoil(str(error))
        self._stream.damage.clear()

    def _spoil(self, what: str) -> None:
        """Note damage. From here on the index and the seek table cannot be rebuilt, so they are not compared."""
        self._note(Damage(what))

    def _note(self, damage: Damage) -> None:
        """Damage ends the reading, or is listed; an archive of some kilobytes could have it without end."""
        self._intact = False
        if not self._tolerant:
            raise FormatError(str(damage))
        if len(self.damage) < MOST_DAMAGE:
            self.damage.append(damage)
        else:
            self.not_listed += 1

    def _in_order(self, keep: int) -> Iterator[CheckedExtent]:
        while self._ordered and (
            self._extents_ahead > keep
            or len(self._ordered) > MOST_IN_ORDER
            or isinstance(self._ordered[0], SkippableSeen | SeekTableSeen | FrameSeen)
        ):
            one = self._ordered.popleft()
            if isinstance(one, SkippableSeen):
                self._take_skippable(one)
                continue
            if isinstance(one, SeekTableSeen):
                self._take_seek_table(one)
                continue
            if isinstance(one, FrameSeen):
                self._add_row(one)
                self.index.add_frame(one.compressed, one.decompressed)
                self._forget_what_is_overdue()
                continue
            self._extents_ahead -= 1
            checked = one.result() if isinstance(one, Future) else one
            self._account(checked)
            yield checked

    # -- one cluster after the other --

    def _account(self, checked: CheckedExtent) -> None:
        extent = checked.extent
        for drive_id, first, count, _ in extent.header.runs:
            self._see(drive_id, first, count)
        self.index.add_extent(extent.header.runs, checked.digests)
        self._forget_what_is_overdue()
        if not checked.sound:
            self._unsound(checked)
        elif None in extent.stored:
            self._forget_lost(extent)

    def _forget_what_is_overdue(self) -> None:
        """No index of ours speaks of so much at once: then none has to be compared with what was found."""
        if self.index.segment_is_overdue or self.index.directory_is_full:
            self._indexable = False
        if self.compression != "zstd" or not self._indexable:
            self.index.forget_segment()

    def _see(self, drive_id: int, first: int, count: int) -> None:
        seen = self._seen[drive_id]
        drive = self.header.by_id[drive_id]
        if self.header.may_end_early(drive) and first != self._vmstate_next.setdefault(drive_id, 0):
            self._spoil_at("the memory image is out of order", drive, first, count)
        for twice, number in seen.already(first, count):
            self._spoil_at("found twice", drive, twice, number)
            self._twice += 1
            if self._twice > MOST_TWICE:
                raise UnsupportedError("clusters are found twice again and again: no writer of archives made this")
        seen.add(first, count)
        self._vmstate_next[drive_id] = first + count

    def _spoil_at(self, what: str, drive: DriveInfo, first: int, count: int) -> None:
        self._note(Damage(what, drive.name, first, count))

    def _unsound(self, checked: CheckedExtent) -> None:
        """The extent's digest is wrong: any of its stored clusters may be, and which cannot be told."""
        what = f"data does not match its digest (extent at byte {checked.extent.at} of the VMA stream)"
        for drive_id, first, count in _stored_runs(checked.extent):
            self._spoil_at(what, self.header.by_id[drive_id], first, count)

    def _forget_lost(self, extent: DecodedExtent) -> None:
        """Clusters whose bytes are lost count as missing."""
        for slot, stored in zip(extent.header.slots, extent.stored, strict=True):
            if stored is None:
                self._seen[slot.drive_id].remove(slot.cluster)

    def _check_complete(self) -> None:
        for drive in self.header.drives:
            if self.header.is_delta or (self.header.may_end_early(drive) and not self._has_segments):
                continue
            for first, count in self._seen[drive.drive_id].missing():
                self._spoil_at("missing", drive, first, count)

    def ends_early(self) -> Iterator[tuple[str, int]]:
        """(name, bytes that are there) of drives that end before their size, as other writers' memory images may.

        Whether such an archive was cut off there, nobody can tell.
        """
        for drive in self.header.drives:
            clusters = self._vmstate_next.get(drive.drive_id, 0)
            if self.header.may_end_early(drive) and clusters < drive.clusters:
                yield drive.name, clusters * vma_layout.CLUSTER_SIZE

    # -- what the archive says about itself --

    def _take_skippable(self, seen: SkippableSeen) -> None:
        magic = int.from_bytes(seen.content[:4], "little")
        try:
            if self.has_seek_table:
                raise FormatError("something follows the seek table", seen.offset)
            if magic == zs.INDEX_MAGIC:
                self._check_index_frame(seen)
        except FormatError as error:
            self._spoil(str(error))
        self._seek_table.add(len(seen.content), 0, 0)

    def _check_index_frame(self, seen: SkippableSeen) -> None:
        kind, content = index.unwrap(seen.content, seen.offset)
        if kind == index.SEGMENT:
            self._has_segments = True
            expected = self.index.take_segment()
            if not self.index.directory_is_full:
                self.index.segment_written(len(seen.content))
        else:
            self._has_directory = True
            self.about = Directory.decode(content).about
            expected = self.index.directory(self.about)
            self._check_about(seen.offset)
        if self._compares and not (self._indexable and expected == content):
            what = "a segment" if kind == index.SEGMENT else "the directory"
            raise FormatError(f"{what} of the index does not agree with the data", seen.offset)

    def _check_about(self, offset: int) -> None:
        """What the directory tells of the drives must be what was found."""
        assert self.about is not None
        told = self.about.get("drives")
        counts = self.index.counts
        found = [index.describe_drive(one.drive_id, one.name, one.size, counts) for one in self.header.drives]
        alike = isinstance(told, list) and len(told) == len(found) and all(map(_agrees, told, found))
        if self._compares and not alike:
            raise FormatError("the directory of the index does not agree with the data", offset)

    @property
    def _compares(self) -> bool:
        """Whether all was found that an index must agree with: not after damage, and not without digests."""
        return self._intact and self._digests is Digests.ALL

    def _take_seek_table(self, seen: SeekTableSeen) -> None:
        if self.has_seek_table:
            self._spoil(f"there is a second seek table at byte {seen.offset}")
        self.has_seek_table = True
        agrees = (seen.rows, seen.digest) == (self._seek_table.rows, self._seek_table.digest())
        # Of others that compress so, who know no index, a table need not be as ours are.
        is_ours = self._has_segments or (seen.names_index and self.header.extent_digests)
        if self._intact and is_ours and not agrees:
            self._spoil(f"the seek table does not agree with the frames (at byte {seen.offset})")
        if is_ours and not self._has_directory:
            self._spoil(f"the index has no directory (at byte {seen.offset})")
        self._seek_table.add(seen.length, 0, 0)


def _agrees(told: object, found: dict[str, Any]) -> bool:
    """Whether all that was found is told so; more may be told."""
    return isinstance(told, dict) and all(told.get(key) == value for key, value in found.items())


def _check(extent: DecodedExtent) -> CheckedExtent:
    digests = extent.digests()
    return CheckedExtent(extent, digests, extent.matches(digests))


def _stored_runs(extent: DecodedExtent) -> list[tuple[int, int, int]]:
    """(drive id, first cluster, number) of the stored clusters of an extent, neighbours joined whatever they store."""
    found: list[tuple[int, int, int]] = []
    for drive_id, first, count, mask in extent.header.runs:
        if not mask:
            continue
        if found and found[-1][0] == drive_id and sum(found[-1][1:]) == first:
            _, first, before = found.pop()
            count += before
        found.append((drive_id, first, count))
    return found
