"""Some drives of an archive, read by its index: only the frames that hold their clusters are fetched.

Neighbouring frames are fetched as one range, and some ranges are on the way at a time. Every cluster is checked
against its digest, and every drive must be complete. That the index tells the truth about what else the archive says
of itself is for `pybackup verify` to prove.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from pybackup.core.errors import Advice, ArchiveError
from pybackup.formats.cluster_index import RUN_STORED
from pybackup.formats.cluster_lookup import FramePlace, Segment, SegmentPlace, StoredCluster
from pybackup.formats.clusters import cluster_digest, expand
from pybackup.formats.errors import FormatError
from pybackup.formats.vma import ExtentHeader, Header, Slot, SlotRun, runs_of_slots
from pybackup.formats.vma_layout import BLOCK_SIZE, FULL_MASK
from pybackup.formats.vma_stream import DecodedExtent

from .checked_extent import CheckedExtent
from .damage import Damage, DamageFound, place_told
from .index import MOST_PARTS, ArchiveIndex
from .input import decompress_frame
from .read_ahead import Sized, in_order
from .seen_clusters import Budget, SeenClusters, TooScatteredError
from .view import ArchiveView

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


class _Stretch(NamedTuple):
    """Clusters in a row of a drive, and which archive has them: zeros, or from ``number`` of ``segment`` on."""

    drive_id: int
    first: int
    clusters: int
    archive: ArchiveIndex
    segment: Segment | None
    number: int


class _Frame(NamedTuple):
    """A frame, and whose it is."""

    archive: ArchiveIndex
    place: FramePlace


class _Wanted(NamedTuple):
    """One cluster, where its stored bytes lie (None for zeros), and the frames that hold them."""

    slot: Slot
    place: StoredCluster | None
    frames: tuple[_Frame, ...]


@dataclass(slots=True)
class _Batch:
    """Clusters in a row of the archive, and the frames that hold them; ``size``: what these take in memory."""

    clusters: list[_Wanted] = field(default_factory=list)
    frames: set[_Frame] = field(default_factory=set)
    size: int = 0

    def takes(self, cluster: _Wanted) -> bool:
        """Whether a cluster still belongs here: no frame is fetched twice, unless the batch grows too large.

        Frames of deltas are kept for other batches; where one comes between, the frame before it may go on.
        """
        if len(self.clusters) >= MOST_SLOTS:
            return False
        return self.size < BATCH or (self.size < 2 * BATCH and all(map(self._is_at_hand, cluster.frames)))

    def _is_at_hand(self, frame: _Frame) -> bool:
        return frame in self.frames or frame.archive.header.is_delta

    def add(self, cluster: _Wanted) -> None:
        """One more cluster."""
        before = self.clusters[-1].frames if self.clusters else None
        self.clusters.append(cluster)
        for frame in cluster.frames if cluster.frames is not before else ():
            if frame not in self.frames:
                self.frames.add(frame)
                self.size += frame.place.compressed + frame.place.decompressed


class _ByPlace(ABC):
    """Reads some drives, of which it is known where every cluster lies. The first damage ends it (ArchiveError).

    Fixed: the header, the pool. Changing: the damage that is listed, where it is put up with.
    """

    def __init__(
        self, newest: ArchiveIndex, pool: ThreadPoolExecutor, *, stop: Callable[[], None], tolerant: bool = False
    ) -> None:
        """``stop``: makes reads that wait fail, from any thread."""
        self.name, self.stop = newest.name, stop
        self.header: Header = newest.header
        self.stored = _stored_by_name(newest.directory.about)
        self.consumed: tuple[int, int] | None = None
        self._pool, self._tolerant = pool, tolerant
        self._found = DamageFound(tolerant=tolerant)
        self.damage: list[Damage] = self._found.listed

    @abstractmethod
    def _stretches(self, drive_ids: Collection[int]) -> Iterator[_Stretch]:
        """Where each cluster of these drives lies, each once (FormatError, ArchiveError)."""

    @abstractmethod
    def _contents(self, frames: Iterable[_Frame], batch: _Batch) -> dict[_Frame, memoryview | None]:
        """What frames hold; None where it is lost."""

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
        batch = _Batch()
        for stretch in self._stretches(drive_ids):
            if stretch.segment is None and stretch.clusters > SMALL_RUN:
                if batch.clusters:
                    yield Sized(batch.size, partial(self._fetch, batch))
                    batch = _Batch()
                yield Sized(0, partial(_zeros, stretch.drive_id, stretch.first, stretch.clusters))
                continue
            for cluster in _clusters_of(stretch):
                if not batch.takes(cluster):
                    yield Sized(batch.size, partial(self._fetch, batch))
                    batch = _Batch()
                batch.add(cluster)
        if batch.clusters:
            yield Sized(batch.size, partial(self._fetch, batch))

    def _error(self, what: str, drive_id: int, first: int, count: int) -> FormatError:
        return FormatError(str(Damage(what, self.header.by_id[drive_id].name, first, count)))

    def _fetch(self, batch: _Batch) -> CheckedExtent:
        contents = self._contents(batch.frames, batch)
        stored = tuple(self._stored(cluster, contents) for cluster in batch.clusters)
        slots = tuple(cluster.slot for cluster in batch.clusters)
        header = ExtentHeader(slots, runs_of_slots(slots), sum(map(len, filter(None, stored))), None)
        at = min((frame.place.vma_offset for frame in batch.frames), default=0)
        return CheckedExtent(DecodedExtent(at, header, stored), [], sound=True)

    def _read(self, frames: Iterable[_Frame], batch: _Batch) -> dict[_Frame, memoryview | None]:
        """Frames, read from their files, those that are neighbours together."""
        contents: dict[_Frame, memoryview | None] = {}
        for archive, group in _neighbours(frames):
            start, end = group[0].file_offset, group[-1].file_offset + group[-1].compressed
            for place in group:
                archive.check_place(place)
            try:
                fetched = memoryview(archive.read(start, end - start))
            except FormatError:
                contents.update(self._read_each(archive, group, batch))
                continue
            for place in group:
                frame = _Frame(archive, place)
                low = place.file_offset - start
                contents[frame] = self._decoded(frame, fetched[low : low + place.compressed], batch)
        return contents

    def _read_each(
        self, archive: ArchiveIndex, group: Iterable[FramePlace], batch: _Batch
    ) -> Iterator[tuple[_Frame, memoryview | None]]:
        """Frames one by one, where something among them does not decrypt: what is lost with it is told."""
        for place in group:
            frame = _Frame(archive, place)
            try:
                raw = memoryview(archive.read(place.file_offset, place.compressed))
            except FormatError as error:
                self._lost(archive, place_told(error), [one.slot for one in batch.clusters if frame in one.frames])
                yield frame, None
            else:
                yield frame, self._decoded(frame, raw, batch)

    def _decoded(self, frame: _Frame, raw: memoryview, batch: _Batch) -> memoryview | None:
        place = frame.place
        try:
            return memoryview(decompress_frame(raw, place.decompressed, place.file_offset))
        except FormatError as error:
            self._lost(frame.archive, place_told(error), [one.slot for one in batch.clusters if frame in one.frames])
            return None

    def _lost(self, archive: ArchiveIndex, what: str, slots: list[Slot]) -> None:
        """Clusters that are lost together: what is told of damage names the first of them in a row."""
        if archive.name != self.name:
            what = f"{what} in {archive.name}"
        while slots:
            first = slots[0]
            row = [slot for step, slot in enumerate(slots) if slot[:2] == (first.drive_id, first.cluster + step)]
            self._found.note(Damage(what, self.header.by_id[first.drive_id].name, first.cluster, len(row)))
            slots = slots[len(row) :]

    def _stored(self, cluster: _Wanted, contents: dict[_Frame, memoryview | None]) -> memoryview | None:
        """A cluster's stored bytes, proved by its digest; None where they are lost."""
        if cluster.place is None:
            return memoryview(b"")
        start = cluster.place.vma_offset
        end = start + cluster.place.mask.bit_count() * BLOCK_SIZE
        parts: list[memoryview] = []
        for one in cluster.frames:
            content = contents[one]
            if content is None:
                return None
            parts.append(content[max(0, start - one.place.vma_offset) : end - one.place.vma_offset])
        stored = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        whole = stored if cluster.place.mask == FULL_MASK else expand(cluster.place.mask, stored)
        if cluster_digest(whole) != cluster.place.digest:
            self._lost(cluster.frames[0].archive, "a cluster does not match its digest", [cluster.slot])
            return None
        return stored


class DrivesByIndex(_ByPlace):
    """Reads some drives of one full archive in its order. Fixed, beside the rest: the index."""

    def __init__(self, archive: ArchiveIndex, pool: ThreadPoolExecutor, *, stop: Callable[[], None]) -> None:
        super().__init__(archive, pool, stop=stop)
        self._archive = archive

    def _contents(self, frames: Iterable[_Frame], batch: _Batch) -> dict[_Frame, memoryview | None]:
        return self._read(frames, batch)

    def _stretches(self, drive_ids: Collection[int]) -> Iterator[_Stretch]:
        budget = Budget()
        seen = {drive_id: SeenClusters(self.header.by_id[drive_id].clusters, budget) for drive_id in drive_ids}
        places = (place for place in self._archive.directory.segments if _speaks_of(place, drive_ids))
        for segment in self._archive.segments(places, self._pool):
            for drive_id, first, count, number in _runs_of(segment, drive_ids):
                if not seen[drive_id].add(first, count):
                    raise self._error("found twice in the index", drive_id, first, count)
                stored = segment if number is not None else None
                yield _Stretch(drive_id, first, count, self._archive, stored, number or 0)
        self._check_complete(seen)

    def _check_complete(self, seen: dict[int, SeenClusters]) -> None:
        for drive_id, clusters in seen.items():
            for first, count in clusters.missing():
                raise self._error("missing in the index", drive_id, first, count)


class DrivesOfChain(_ByPlace):
    """Reads some drives of a delta and its ancestors, in the drives' order.

    Fixed, beside the rest: the view. Frames of deltas hold clusters from all over a drive: they are kept for a while.
    """

    def __init__(
        self, view: ArchiveView, pool: ThreadPoolExecutor, *, stop: Callable[[], None], tolerant: bool = False
    ) -> None:
        """``tolerant``: damage of the data is listed, and lost clusters are left out."""
        super().__init__(view.newest, pool, stop=stop, tolerant=tolerant)
        self._view = view
        self.stored = {}

    def _stretches(self, drive_ids: Collection[int]) -> Iterator[_Stretch]:
        for drive_id in sorted(drive_ids):
            for run in self._view.walk(drive_id):
                yield _Stretch(drive_id, run.first, run.clusters, run.layer.archive, run.segment, run.number)

    def _contents(self, frames: Iterable[_Frame], batch: _Batch) -> dict[_Frame, memoryview | None]:
        contents: dict[_Frame, memoryview | None] = {}
        unknown: list[_Frame] = []
        for frame in frames:
            kept = frame.archive.kept_frame(frame.place)
            if kept is None:
                unknown.append(frame)
            else:
                contents[frame] = memoryview(kept)
        for frame, content in self._read(unknown, batch).items():
            contents[frame] = content
            if content is not None and frame.archive.header.is_delta:
                frame.archive.keep_frame(frame.place, content)
        return contents


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


def _clusters_of(stretch: _Stretch) -> Iterator[_Wanted]:
    segment = stretch.segment
    frames: tuple[_Frame, ...] = ()
    for step in range(stretch.clusters):
        if segment is None:
            yield _Wanted(Slot(stretch.drive_id, stretch.first + step, 0), None, ())
        else:
            place = segment.stored(stretch.number + step)
            if not _hold(frames, place):
                frames = tuple(_Frame(stretch.archive, one) for one in _frames_of(segment, place))
            yield _Wanted(Slot(stretch.drive_id, stretch.first + step, place.mask), place, frames)


def _hold(frames: tuple[_Frame, ...], place: StoredCluster) -> bool:
    """Whether the frames of the cluster before are one that holds this stored cluster too."""
    if len(frames) != 1:
        return False
    frame = frames[0].place
    end = place.vma_offset + place.mask.bit_count() * BLOCK_SIZE
    return frame.vma_offset <= place.vma_offset and end <= frame.vma_offset + frame.decompressed


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


def _neighbours(frames: Iterable[_Frame]) -> Iterator[tuple[ArchiveIndex, list[FramePlace]]]:
    """The frames in groups that are worth one range each, and whose they are."""
    ordered = sorted(frames, key=lambda frame: (id(frame.archive), frame.place))
    for _, own in groupby(ordered, key=lambda frame: id(frame.archive)):
        group: list[FramePlace] = []
        for archive, place in own:
            behind = group[-1].file_offset + group[-1].compressed if group else 0
            if group and (place.file_offset - behind > GAP or behind - group[0].file_offset > BATCH):
                yield archive, group
                group = []
            group.append(place)
        yield archive, group


def _zeros(drive_id: int, first: int, count: int) -> CheckedExtent:
    header = ExtentHeader((), (SlotRun(drive_id, first, count, 0),), 0, None)
    return CheckedExtent(DecodedExtent(0, header, ()), [], sound=True)
