"""Every cluster of a chain of archives, once, as its newest archive sees them: read in the order in which they lie.

The newest archive is walked through first, and what it lists hides what is listed by those below it. So each archive
is read once from its beginning to its end, but for the frames of which nothing is left, and no more has to be known
meanwhile than which clusters were there already. A frame whose clusters are all left is given as it is, of any other
the clusters that are. Every one is proved by its digest before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

from pybackup.core.errors import ArchiveError
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.archive import CopiedFrame, EncodedFrame, ZeroRun
from pybackup.formats.cluster_index import RUN_ZERO
from pybackup.formats.cluster_lookup import FrameGroup, FramePlace, Segment
from pybackup.formats.clusters import ClusterRun, Part, cluster_digest, expand
from pybackup.formats.errors import FormatError
from pybackup.formats.vma import DriveInfo, Header, Slot, runs_of_slots
from pybackup.formats.vma_layout import BLOCK_SIZE, CLUSTER_SIZE, CLUSTERS_PER_EXTENT, FULL_MASK

from .damage import Damage, place_told
from .index import MOST_PARTS, ArchiveIndex
from .input import decompress_frame
from .read_ahead import Sized, in_order
from .seen_clusters import Budget, SeenClusters, TooScatteredError

FETCHES, FETCHES_SIZE = 3, 24 << 20
"""Batches on the way while one is used, and bytes that they may take."""
BATCH = 4 << 20
"""Bytes of frames, in the file and decompressed, after which a batch ends."""
GAP = 64 << 10
"""Bytes between two frames that are rather fetched than asked around."""


class StoredRuns(NamedTuple):
    """Clusters in a row of a drive, from cluster ``first`` on, as they are stored."""

    drive_id: int
    first: int
    runs: Sequence[ClusterRun]


Surviving: TypeAlias = ZeroRun | StoredRuns | CopiedFrame
"""What is left of a chain: drives have the ids that the newest archive gives them."""


class _Stretch(NamedTuple):
    """Stored clusters in a row of a segment that are left: the number of the first, how many, and which they are."""

    number: int
    length: int
    drive_id: int
    first: int

    def within(self, first: int, end: int) -> _Stretch:
        """What of it has the numbers [first, end)."""
        low, high = max(self.number, first), min(self.number + self.length, end)
        return _Stretch(low, high - low, self.drive_id, self.first + low - self.number)


class _Wanted(NamedTuple):
    """Frames, and the clusters in them that are left; ``is_whole``: all that there are."""

    group: FrameGroup
    stretches: Sequence[_Stretch]
    is_whole: bool


@dataclass(slots=True)
class _Batch:
    """What is fetched together from one segment. ``size``: bytes in memory."""

    wanted: list[_Wanted] = field(default_factory=list)
    size: int = 0

    def add(self, wanted: _Wanted) -> None:
        self.wanted.append(wanted)
        self.size += sum(frame.compressed + frame.decompressed for frame in wanted.group.frames)


class _Layer:
    """One archive of the chain. Fixed: which of its drives count, by which ids and up to which cluster.

    Changing: what was listed in it, for nothing may be listed twice.
    """

    def __init__(self, archive: ArchiveIndex, limits: dict[int, tuple[int, int]]) -> None:
        """``limits``: by its own ids of drives (the id of the newest archive, clusters)."""
        self.archive, self.limits = archive, limits
        budget = Budget()
        self._own = {drive_id: SeenClusters(archive.header.by_id[drive_id].clusters, budget) for drive_id in limits}

    def listed(self, drive_id: int, first: int, count: int) -> None:
        """Note what the index lists (FormatError)."""
        if not self._own[drive_id].add(first, count):
            name = self.archive.header.by_id[drive_id].name
            raise FormatError(str(Damage("found twice in the index", name, first, count)))


class ChainWalk:
    """Walks over a chain once. The first damage ends it (ArchiveError).

    Fixed: the archives, the pool. Changing, by the one thread that iterates: which clusters were there.
    """

    def __init__(
        self,
        layers: Sequence[ArchiveIndex],
        pool: ThreadPoolExecutor,
        *,
        leave_out: Collection[int] = (),
        largest_frame: int | None = None,
    ) -> None:
        """``layers``: newest first. ``leave_out``: ids of drives. ``largest_frame``: bytes; larger ones are no frames
        to be given as they are."""
        self.header: Header = layers[0].header
        self._pool, self._largest = pool, largest_frame
        drives = [drive for drive in self.header.drives if drive.drive_id not in leave_out]
        budget = Budget()
        self._seen = {drive.drive_id: SeenClusters(drive.clusters, budget) for drive in drives}
        self._layers = list(_layers(layers, drives))

    def __iter__(self) -> Iterator[Surviving]:
        """All clusters of all drives, but those left out."""
        for some in in_order(self._pool, self._calls(), FETCHES, FETCHES_SIZE):
            yield from some

    def _calls(self) -> Iterator[Sized]:
        """What is to be done, in order; run in the pool."""
        for layer in self._layers:
            try:
                for segment in layer.archive.segments(layer.archive.directory.segments, self._pool):
                    yield from self._of_segment(layer, segment)
            except (FormatError, TooScatteredError) as error:
                raise _damaged(layer, error) from None
        self._check_complete()

    def _of_segment(self, layer: _Layer, segment: Segment) -> Iterator[Sized]:
        zeros, stretches = self._left(layer, segment)
        if zeros:
            yield Sized(0, partial(list, zeros))
        batch = _Batch()
        for wanted in _wanted(segment, stretches):
            batch.add(wanted)
            if batch.size >= BATCH:
                yield Sized(batch.size, partial(self._fetch, layer, segment, batch))
                batch = _Batch()
        if batch.wanted:
            yield Sized(batch.size, partial(self._fetch, layer, segment, batch))

    def _left(self, layer: _Layer, segment: Segment) -> tuple[list[ZeroRun], list[_Stretch]]:
        """What no newer archive hides; from now on this hides others."""
        zeros: list[ZeroRun] = []
        stretches: list[_Stretch] = []
        number = 0
        for own_id, kind, first, count in segment.runs:
            start, number = number, number + (0 if kind == RUN_ZERO else count)
            if own_id not in layer.limits:
                continue
            layer.listed(own_id, first, count)
            drive_id, limit = layer.limits[own_id]
            for low, high in self._unseen(drive_id, first, min(first + count, limit)):
                if kind == RUN_ZERO:
                    zeros.append(ZeroRun(drive_id, low, high - low))
                else:
                    stretches.append(_Stretch(start + low - first, high - low, drive_id, low))
        return zeros, stretches

    def _unseen(self, drive_id: int, first: int, end: int) -> Iterator[tuple[int, int]]:
        """(first, end) of runs among these clusters that are new; they are ticked off."""
        if first >= end:
            return
        seen = self._seen[drive_id]
        at = first
        for already, count in list(seen.already(first, end - first)):
            if already > at:
                yield at, already
            at = already + count
        if at < end:
            yield at, end
        seen.add(first, end - first)

    def _check_complete(self) -> None:
        for drive_id, seen in self._seen.items():
            for first, count in seen.missing():
                what = "missing in the index" if len(self._layers) == 1 else "missing in the indexes of the chain"
                damage = Damage(what, self.header.by_id[drive_id].name, first, count)
                raise ArchiveError(f"{self._layers[0].archive.name} is damaged: {damage}")

    # -- in the pool --

    def _fetch(self, layer: _Layer, segment: Segment, batch: _Batch) -> list[Surviving]:
        found: list[Surviving] = []
        try:
            for some in _neighbours(batch.wanted):
                start = some[0].group.frames[0].file_offset
                for frame in (frame for wanted in some for frame in wanted.group.frames):
                    layer.archive.check_place(frame)
                last = some[-1].group.frames[-1]
                fetched = memoryview(layer.archive.read(start, last.file_offset + last.compressed - start))
                for wanted in some:
                    frames = [fetched[frame.file_offset - start :][: frame.compressed] for frame in wanted.group.frames]
                    found += self._decode(segment, wanted, frames)
        except FormatError as error:
            raise _damaged(layer, error) from None
        return found

    def _decode(self, segment: Segment, wanted: _Wanted, frames: Sequence[memoryview]) -> Iterator[Surviving]:
        """What is left of neighbouring frames, proved."""
        places = wanted.group.frames
        try:
            contents = [
                decompress_frame(frame, place.decompressed, place.file_offset)
                for frame, place in zip(frames, places, strict=True)
            ]
        except FormatError as error:
            raise self._lost(place_told(error), wanted) from None
        content = contents[0] if len(contents) == 1 else b"".join(contents)
        runs = [self._runs(segment, stretch, content, places[0].vma_offset) for stretch in wanted.stretches]
        if wanted.is_whole and (copied := self._as_it_is(frames[0], places[0], wanted, runs)) is not None:
            return iter((copied,))
        return (StoredRuns(one.drive_id, one.first, found) for one, found in zip(wanted.stretches, runs, strict=True))

    def _lost(self, what: str, wanted: _Wanted) -> FormatError:
        first = wanted.stretches[0]
        return FormatError(str(Damage(what, self.header.by_id[first.drive_id].name, first.first, first.length)))

    def _runs(self, segment: Segment, stretch: _Stretch, content: bytes, base: int) -> list[ClusterRun]:
        """Clusters in a row, whose bytes lie in frames whose content begins at ``base`` in the VMA stream."""
        runs: list[ClusterRun] = []
        low, high = segment.extent_of(stretch.number, stretch.length)
        if high - low < len(content) // 2:
            # What is left must not keep all else of its frame in memory until it is written.
            content, base = content[low - base : high - base], low
        drive = self.header.by_id[stretch.drive_id]
        for step in range(stretch.length):
            place = segment.stored(stretch.number + step)
            start = place.vma_offset - base
            end = start + place.mask.bit_count() * BLOCK_SIZE
            stored = memoryview(content)[start:end]
            whole = stored if place.mask == FULL_MASK else expand(place.mask, stored)
            if not place.mask or cluster_digest(whole) != place.digest:
                raise self._wrong("a cluster does not match its digest", drive, stretch.first + step)
            if place.mask != FULL_MASK and place.mask & ~drive.allowed_mask(stretch.first + step):
                raise self._wrong("blocks are stored behind the end", drive, stretch.first + step)
            _append(runs, ClusterRun(1, place.mask, [place.digest], (Part(content, start, end),)))
        return runs

    @staticmethod
    def _wrong(what: str, drive: DriveInfo, cluster: int) -> FormatError:
        return FormatError(str(Damage(what, drive.name, cluster, 1)))

    def _as_it_is(
        self, frame: memoryview, place: FramePlace, wanted: _Wanted, runs: Sequence[list[ClusterRun]]
    ) -> CopiedFrame | None:
        """The frame to be written as it is, where it can be: of foreign ones not all can."""
        clusters = sum(stretch.length for stretch in wanted.stretches)
        has_checksum = zs.parse_frame_header(frame[: zs.LONGEST_FRAME_HEADER]).has_checksum
        too_large = clusters > CLUSTERS_PER_EXTENT or (self._largest is not None and place.decompressed > self._largest)
        if too_large or not has_checksum:
            return None
        slots = []
        for stretch, found in zip(wanted.stretches, runs, strict=True):
            masks = (run.mask for run in found for _ in range(run.clusters))
            slots += [Slot(stretch.drive_id, stretch.first + step, mask) for step, mask in enumerate(masks)]
        checksum = int.from_bytes(frame[-zs.CHECKSUM_SIZE :], "little")
        encoded = EncodedFrame([bytes(frame)], place.compressed, place.decompressed, checksum)
        return CopiedFrame(encoded, runs_of_slots(slots), [one for some in runs for run in some for one in run.digests])


def _layers(archives: Sequence[ArchiveIndex], drives: Sequence[DriveInfo]) -> Iterator[_Layer]:
    """The archives, and which of their drives count: up to the first that has no drive of that name."""
    limits = {drive.name: (drive.drive_id, drive.clusters) for drive in drives}
    for archive in archives:
        own = {drive.name: drive for drive in archive.header.drives}
        limits = {name: limit for name, limit in limits.items() if name in own}
        yield _Layer(archive, {own[name].drive_id: limit for name, limit in limits.items()})
        limits = {name: (drive_id, min(limit, own[name].clusters)) for name, (drive_id, limit) in limits.items()}


def _damaged(layer: _Layer, error: FormatError | TooScatteredError) -> ArchiveError:
    if isinstance(error, FormatError):
        return ArchiveError(f"{layer.archive.name} is damaged: {place_told(error)}")
    return ArchiveError(f"{layer.archive.name}: {error}")


def _wanted(segment: Segment, stretches: Sequence[_Stretch]) -> Iterator[_Wanted]:
    """The frames of which anything is left, in their order."""
    at = 0
    for group in segment.frame_groups(MOST_PARTS):
        left: list[_Stretch] = []
        while at < len(stretches) and stretches[at].number < group.end:
            stretch = stretches[at]
            left.append(stretch.within(group.first, group.end))
            if stretch.number + stretch.length > group.end:
                break
            at += 1
        if left:
            count = sum(stretch.length for stretch in left)
            yield _Wanted(group, left, group.is_exact and count == group.end - group.first)


def _append(runs: list[ClusterRun], run: ClusterRun) -> None:
    """Append a cluster; full ones in a row become one run."""
    last = runs[-1] if runs else None
    if last is None or last.mask != FULL_MASK or run.mask != FULL_MASK or last.parts[0].end != run.parts[0].start:
        runs.append(run)
        return
    (part,) = last.parts
    joined = Part(part.buffer, part.start, part.end + CLUSTER_SIZE)
    runs[-1] = ClusterRun(last.clusters + 1, FULL_MASK, [*last.digests, *run.digests], (joined,))


def _neighbours(wanted: Sequence[_Wanted]) -> Iterator[list[_Wanted]]:
    """Those that are worth one range each; they are in the order of the file."""
    some: list[_Wanted] = []
    for one in wanted:
        if some:
            last = some[-1].group.frames[-1]
            if one.group.frames[0].file_offset - last.file_offset - last.compressed > GAP:
                yield some
                some = []
        some.append(one)
    if some:
        yield some
