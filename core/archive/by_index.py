"""Some drives of an archive, read by its index: only the frames that hold their clusters are fetched.

Neighbouring frames are fetched as one range, and some ranges are on the way at a time. Every cluster is checked
against its digest, and every drive must be complete. That the index tells the truth about what else the archive says
of itself is for `pybackup verify` to prove.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from pybackup.core.errors import Advice, ArchiveError
from pybackup.formats.cluster_index import RUN_STORED
from pybackup.formats.cluster_lookup import FramePlace, Segment, SegmentPlace, StoredCluster
from pybackup.formats.clusters import cluster_digest, expand
from pybackup.formats.errors import FormatError
from pybackup.formats.vma import ExtentHeader, Header, Slot, SlotRun, runs_of_slots
from pybackup.formats.vma_layout import BLOCK_SIZE
from pybackup.formats.vma_stream import DecodedExtent

from .checked_extent import CheckedExtent
from .damage import Damage, place_told
from .index import MOST_PARTS, ArchiveIndex
from .input import decompress_frame
from .read_ahead import Sized, in_order
from .seen_clusters import Budget, SeenClusters, TooScatteredError

FETCHES, FETCHES_SIZE = 4, 48 << 20
"""Batches on the way while one is used, and bytes that they may take."""
BATCH = 8 << 20
"""Bytes of frames, in the file and decompressed, after which a batch ends; and twice that, where it must."""
GAP = 16 << 10
"""Bytes between two frames that are rather fetched than asked around: a request costs more."""
SMALL_RUN = 64
"""Clusters: zeros in a row are no reason to end a batch before."""


MOST_SLOTS = 4096
"""Clusters in a batch, zeros included."""


class _Wanted(NamedTuple):
    """One cluster, where its stored bytes lie (None for zeros), and the frames that hold them."""

    slot: Slot
    place: StoredCluster | None
    frames: tuple[FramePlace, ...]


@dataclass(slots=True)
class _Batch:
    """Clusters in a row of the archive, and the frames that hold them; ``size``: what these take in memory."""

    clusters: list[_Wanted] = field(default_factory=list)
    frames: set[FramePlace] = field(default_factory=set)
    size: int = 0

    def takes(self, cluster: _Wanted) -> bool:
        """Whether a cluster still belongs here: no frame is fetched twice, unless the batch grows too large."""
        shares = not self.frames.isdisjoint(cluster.frames)
        return len(self.clusters) < MOST_SLOTS and self.size < (2 * BATCH if shares else BATCH)

    def add(self, cluster: _Wanted) -> None:
        """One more cluster."""
        self.clusters.append(cluster)
        for frame in cluster.frames:
            if frame not in self.frames:
                self.frames.add(frame)
                self.size += frame.compressed + frame.decompressed


class DrivesByIndex:
    """Reads some drives of one archive in its order. The first damage ends it (ArchiveError).

    Fixed: the index, the pool. Changing: nothing; extents() keeps what it needs.
    """

    def __init__(self, archive: ArchiveIndex, pool: ThreadPoolExecutor, *, stop: Callable[[], None]) -> None:
        """``stop``: makes reads that wait fail, from any thread."""
        self.name, self.stop = archive.name, stop
        self.header: Header = archive.header
        self.damage: list[Damage] = []
        self.stored = _stored_by_name(archive.directory.about)
        self.consumed: tuple[int, int] | None = None
        self._archive, self._pool = archive, pool

    def extents(self, drive_ids: Collection[int]) -> Iterator[CheckedExtent]:
        """What these drives hold, zeros included."""
        try:
            yield from in_order(self._pool, self._fetches(drive_ids), FETCHES, FETCHES_SIZE)
        except FormatError as error:
            sentence = f"{self.name} is damaged: {place_told(error)}"
            raise ArchiveError(sentence, advice=Advice.SKIP_DAMAGED) from None
        except TooScatteredError as error:
            raise ArchiveError(f"{self.name}: {error}") from None

    def _fetches(self, drive_ids: Collection[int]) -> Iterator[Sized]:
        """What is to be done for each extent that extents() gives; run in the pool."""
        budget = Budget()
        seen = {drive_id: SeenClusters(self.header.by_id[drive_id].clusters, budget) for drive_id in drive_ids}
        places = (place for place in self._archive.directory.segments if _speaks_of(place, drive_ids))
        for segment in self._archive.segments(places, self._pool):
            batch = _Batch()
            for drive_id, first, count, number in _runs_of(segment, drive_ids):
                if not seen[drive_id].add(first, count):
                    raise self._error("found twice in the index", drive_id, first, count)
                if number is None and count > SMALL_RUN:
                    if batch.clusters:
                        yield Sized(batch.size, partial(self._fetch, batch))
                        batch = _Batch()
                    yield Sized(0, partial(_zeros, drive_id, first, count))
                    continue
                for cluster in _clusters_of(segment, drive_id, first, count, number):
                    if not batch.takes(cluster):
                        yield Sized(batch.size, partial(self._fetch, batch))
                        batch = _Batch()
                    batch.add(cluster)
            if batch.clusters:
                yield Sized(batch.size, partial(self._fetch, batch))
        self._check_complete(seen)

    def _check_complete(self, seen: dict[int, SeenClusters]) -> None:
        for drive_id, clusters in seen.items():
            for first, count in clusters.missing():
                raise self._error("missing in the index", drive_id, first, count)

    def _error(self, what: str, drive_id: int, first: int, count: int) -> FormatError:
        return FormatError(str(Damage(what, self.header.by_id[drive_id].name, first, count)))

    def _fetch(self, batch: _Batch) -> CheckedExtent:
        contents: dict[FramePlace, memoryview] = {}
        for frames in _neighbours(batch.frames):
            start, end = frames[0].file_offset, frames[-1].file_offset + frames[-1].compressed
            for frame in frames:
                self._archive.check_place(frame)
            fetched = memoryview(self._archive.read(start, end - start))
            for frame in frames:
                low = frame.file_offset - start
                raw = fetched[low : low + frame.compressed]
                try:
                    contents[frame] = memoryview(decompress_frame(raw, frame.decompressed, frame.file_offset))
                except FormatError as error:
                    raise self._lost_with(frame, batch, error) from None
        stored = tuple(self._stored(cluster, contents) for cluster in batch.clusters)
        slots = tuple(cluster.slot for cluster in batch.clusters)
        header = ExtentHeader(slots, runs_of_slots(slots), sum(map(len, stored)), None)
        at = min((frame.vma_offset for frame in batch.frames), default=0)
        return CheckedExtent(DecodedExtent(at, header, stored), [], sound=True)

    def _lost_with(self, frame: FramePlace, batch: _Batch, error: FormatError) -> FormatError:
        """The error, and the first clusters in a row that are lost with a frame."""
        slots = [cluster.slot for cluster in batch.clusters if frame in cluster.frames]
        first = slots[0]
        row = [slot for step, slot in enumerate(slots) if slot[:2] == (first.drive_id, first.cluster + step)]
        return self._error(place_told(error), first.drive_id, first.cluster, len(row))

    def _stored(self, cluster: _Wanted, contents: dict[FramePlace, memoryview]) -> memoryview:
        """A cluster's stored bytes, proved by its digest."""
        if cluster.place is None:
            return memoryview(b"")
        start = cluster.place.vma_offset
        end = start + cluster.place.mask.bit_count() * BLOCK_SIZE
        parts = [contents[one][max(0, start - one.vma_offset) : end - one.vma_offset] for one in cluster.frames]
        stored = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        if cluster_digest(expand(cluster.place.mask, stored)) != cluster.place.digest:
            raise self._error("a cluster does not match its digest", cluster.slot.drive_id, cluster.slot.cluster, 1)
        return stored


def _stored_by_name(about: dict[str, Any]) -> dict[str, int]:
    """What an archive tells of its drives, which may be anything: whole numbers that can be."""
    told = about.get("drives")
    drives = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    found = {one["name"]: one.get("stored_bytes") for one in drives if isinstance(one.get("name"), str)}
    return {name: size for name, size in found.items() if isinstance(size, int) and 0 <= size < 1 << 60}


def _speaks_of(place: SegmentPlace, drive_ids: Collection[int]) -> bool:
    return any(drive_id in drive_ids for drive_id, _, _ in place.ranges)


def _runs_of(segment: Segment, drive_ids: Collection[int]) -> Iterator[tuple[int, int, int, int | None]]:
    """(drive id, first cluster, clusters, number of the first stored cluster or None for zeros) of these drives."""
    number = 0
    for drive_id, kind, first, count in segment.runs:
        stored = kind == RUN_STORED
        if drive_id in drive_ids:
            yield drive_id, first, count, number if stored else None
        number += count if stored else 0


def _clusters_of(segment: Segment, drive_id: int, first: int, count: int, number: int | None) -> Iterator[_Wanted]:
    for step in range(count):
        if number is None:
            yield _Wanted(Slot(drive_id, first + step, 0), None, ())
        else:
            place = segment.stored(number + step)
            yield _Wanted(Slot(drive_id, first + step, place.mask), place, _frames_of(segment, place))


def _frames_of(segment: Segment, place: StoredCluster) -> tuple[FramePlace, ...]:
    """The frames that hold a stored cluster, in order; mostly one."""
    frames: list[FramePlace] = []
    offset = place.vma_offset
    end = offset + place.mask.bit_count() * BLOCK_SIZE
    while offset < end:
        if len(frames) == MOST_PARTS:
            raise FormatError("the index names a place outside its frames", offset)
        frames.append(segment.frame_of(offset))
        offset = frames[-1].vma_offset + frames[-1].decompressed
    return tuple(frames)


def _neighbours(frames: Collection[FramePlace]) -> Iterator[list[FramePlace]]:
    """The frames in groups that are worth one range each."""
    group: list[FramePlace] = []
    for frame in sorted(frames):
        behind = group[-1].file_offset + group[-1].compressed if group else 0
        if group and (frame.file_offset - behind > GAP or behind - group[0].file_offset > BATCH):
            yield group
            group = []
        group.append(frame)
    if group:
        yield group


def _zeros(drive_id: int, first: int, count: int) -> CheckedExtent:
    header = ExtentHeader((), (SlotRun(drive_id, first, count, 0),), 0, None)
    return CheckedExtent(DecodedExtent(0, header, ()), [], sound=True)
