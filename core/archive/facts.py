"""What there is to tell about an archive: from its index, or by reading it through."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pybackup.core.places.kinds import ArchivePlace
from pybackup.formats.cluster_index import RUN_ZERO, DriveCounts
from pybackup.formats.cluster_lookup import Segment
from pybackup.formats.vma import Header
from pybackup.formats.vma_layout import BLOCK_SIZE

from .index import SEGMENTS_AHEAD, ArchiveIndex, NoIndexError
from .open import has_ranges, open_archive, range_reader
from .stream import ArchiveStream, Digests

MAP_CELLS = 512
"""A drive's map is gathered in at most so many cells."""


@dataclass(slots=True)
class DriveMap:
    """How full a drive is, cell by cell: stored clusters in each. ``clusters_per_cell`` tells how large a cell is."""

    clusters_per_cell: int
    cells: list[int] = field(default_factory=list)


@dataclass(slots=True)
class ArchiveFacts:
    """The facts. ``size`` is the archive's in bytes, None where it came through a pipe.

    ``digest``: of the directory, where the archive has one and is read at any place.
    """

    header: Header
    size: int | None
    compression: str
    has_index: bool
    counts: dict[int, DriveCounts]
    compressed: dict[int, int] | None
    about: dict[str, Any]
    digest: bytes | None
    maps: dict[int, DriveMap]


def archive_facts(archive: ArchivePlace, *, threads: int = 1) -> ArchiveFacts:
    """Gather the facts; only the index is read where there is one (ArchiveError)."""
    if not has_ranges(archive):
        return _from_reading(archive, None, threads)
    with range_reader(archive) as source:
        try:
            return _from_index(ArchiveIndex(source.pread, source.size, str(archive), allow_delta=True))
        except NoIndexError:
            return _from_reading(archive, source.size, threads)


def _new_maps(header: Header) -> dict[int, DriveMap]:
    maps = {}
    for drive in header.drives:
        per_cell = -(-drive.clusters // MAP_CELLS)
        maps[drive.drive_id] = DriveMap(per_cell, [0] * -(-drive.clusters // per_cell))
    return maps


def _mark(drive_map: DriveMap, first: int, count: int) -> None:
    end = first + count
    while first < end:
        cell = first // drive_map.clusters_per_cell
        cell_end = min(end, (cell + 1) * drive_map.clusters_per_cell)
        drive_map.cells[cell] += cell_end - first
        first = cell_end


def _from_index(archive: ArchiveIndex) -> ArchiveFacts:
    maps = _new_maps(archive.header)
    counts = {drive.drive_id: DriveCounts() for drive in archive.header.drives}
    compressed = dict.fromkeys(counts, 0)
    with ThreadPoolExecutor(SEGMENTS_AHEAD, thread_name_prefix="pybackup-index") as pool:
        for segment in archive.segments(archive.directory.segments, pool):
            _count_segment(segment, counts, compressed, maps)
    about, digest = archive.directory.about, archive.digest
    return ArchiveFacts(archive.header, archive.size, "zstd", True, counts, compressed, about, digest, maps)


def _count_segment(
    segment: Segment, counts: dict[int, DriveCounts], compressed: dict[int, int], maps: dict[int, DriveMap]
) -> None:
    number = 0
    for drive_id, kind, first, count in segment.runs:
        if kind == RUN_ZERO:
            counts[drive_id].zero_clusters += count
        else:
            counts[drive_id].stored_clusters += count
            counts[drive_id].stored_bytes += segment.blocks_in(number, count) * BLOCK_SIZE
            number += count
            _mark(maps[drive_id], first, count)
    for drive_id, size in segment.compressed_sizes().items():
        compressed[drive_id] += size


def _from_reading(archive: ArchivePlace, size: int | None, threads: int) -> ArchiveFacts:
    with open_archive(archive, threads=threads, digests=Digests.NONE, allow_delta=True) as stream:
        maps = _new_maps(stream.header)
        for checked in stream:
            for drive_id, first, count, mask in checked.extent.header.runs:
                if mask:
                    _mark(maps[drive_id], first, count)
        return _facts_of(stream, size, maps)


def _facts_of(stream: ArchiveStream, size: int | None, maps: dict[int, DriveMap]) -> ArchiveFacts:
    counts = {drive.drive_id: stream.counts.get(drive.drive_id, DriveCounts()) for drive in stream.header.drives}
    return ArchiveFacts(
        stream.header, size, stream.compression, stream.about is not None, counts, None, stream.about or {}, None, maps
    )
