"""What an archive holds, whether it is a full one or a delta with all its ancestors: any cluster of any drive.

Whatever reads at a place reads through this, and does not know how long the chain is. A cluster is looked up in each
archive, the newest first, until one has it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pybackup.core.errors import ArchiveError
from pybackup.formats.cluster_lookup import Segment
from pybackup.formats.clusters import ZERO_CLUSTER
from pybackup.formats.vma import DriveInfo, Header

from .index import ArchiveIndex, Run

FIRST_WINDOW, LARGEST_WINDOW = 1 << 16, 1 << 24
"""Clusters that are looked up at once by who walks over a drive: 4 GiB, and more where little is found."""
FEW_RUNS = 1 << 12


class Layer(NamedTuple):
    """An archive of the chain that speaks of a drive: by which id, and how many clusters the drive had then."""

    archive: ArchiveIndex
    drive_id: int
    clusters: int


class ViewRun(NamedTuple):
    """Clusters in a row of a drive: zeros, or what ``layer`` has stored, from ``number`` of ``segment`` on."""

    first: int
    clusters: int
    layer: Layer
    segment: Segment | None
    number: int

    @property
    def end(self) -> int:
        """The cluster behind the last."""
        return self.first + self.clusters


class ArchiveView:
    """The drives of the newest archive of a chain, at any place, for any thread.

    Fixed: the archives, newest first, of which all but the last are deltas; they share what they keep.
    """

    def __init__(self, archives: Sequence[ArchiveIndex]) -> None:
        """Of archives that are parent and child, the child first."""
        self.archives = tuple(archives)
        self.newest = archives[0]
        self.name = self.newest.name
        self.header: Header = self.newest.header
        self._layers = {drive.drive_id: tuple(self._descend(drive)) for drive in self.header.drives}

    def _descend(self, drive: DriveInfo) -> Iterator[Layer]:
        """Where a drive is looked up: a drive that the parent lacks is stored whole."""
        for archive in self.archives:
            found = archive.header.by_name.get(drive.name)
            if found is None:
                return
            yield Layer(archive, found.drive_id, found.clusters)

    def layers(self, drive_id: int) -> Sequence[Layer]:
        """The archives that speak of a drive, the newest first."""
        return self._layers[drive_id]

    def resolve(self, drive_id: int, first: int, end: int) -> list[ViewRun]:
        """What clusters [first, end) of a drive are, in their order (ArchiveError where one is missing)."""
        gaps = _Gaps([first], [end])
        found: list[ViewRun] = []
        for layer in self._layers[drive_id]:
            if gaps.ends[-1] > layer.clusters:
                break
            gaps = _fill(layer, gaps, found)
            if not gaps.ends:
                found.sort(key=_first_of)
                return found
        raise self._missing(drive_id, gaps.ends[-1] - 1)

    def walk(self, drive_id: int, first: int = 0) -> Iterator[ViewRun]:
        """resolve() for all of a drive from a cluster on; a run may be cut in two."""
        clusters = self.header.by_id[drive_id].clusters
        window = FIRST_WINDOW
        while first < clusters:
            end = min(clusters, first + window)
            runs = self.resolve(drive_id, first, end)
            yield from runs
            first = end
            window = min(2 * window, LARGEST_WINDOW) if len(runs) < FEW_RUNS else FIRST_WINDOW

    def read_cluster(self, drive_id: int, cluster: int) -> bytes:
        """The 65536 bytes of a cluster, checked against its digest (ArchiveError)."""
        layer, segment, number = self._locate(drive_id, cluster, now=False)
        if segment is None:
            return ZERO_CLUSTER
        return layer.archive.read_stored(segment, number, layer.drive_id, cluster)

    def read_kept(self, drive_id: int, cluster: int) -> bytes:
        """As read_cluster(), from memory alone, else NotKeptError: nothing is read, and nobody waited for."""
        layer, segment, number = self._locate(drive_id, cluster, now=True)
        if segment is None:
            return ZERO_CLUSTER
        return layer.archive.read_kept(segment, number)

    def _locate(self, drive_id: int, cluster: int, *, now: bool) -> tuple[Layer, Segment | None, int]:
        """resolve() for one cluster, which builds no lists."""
        for layer in self._layers[drive_id]:
            if cluster >= layer.clusters:
                break
            found = layer.archive.locate(layer.drive_id, cluster, now=now)
            if found is not None:
                return layer, *found
        raise self._missing(drive_id, cluster)

    def _missing(self, drive_id: int, cluster: int) -> ArchiveError:
        name = self.header.by_id[drive_id].name
        return ArchiveError(f"{self.name} is damaged: cluster {cluster} of drive {name} is missing")


class _Gaps(NamedTuple):
    """Clusters that no archive has had yet: where each gap begins and ends, in order."""

    starts: list[int]
    ends: list[int]


def _fill(layer: Layer, gaps: _Gaps, found: list[ViewRun]) -> _Gaps:
    """Add to ``found`` what a layer has of the gaps; what is left of them.

    In a long chain there are many gaps, of which a layer fills few: the layer is asked once, and the gaps between its
    runs are copied many at a time.
    """
    starts, ends = gaps
    left = _Gaps([], [])
    gap, at = 0, starts[0]
    for run in layer.archive.runs_between(layer.drive_id, starts[0], ends[-1]):
        touched = bisect_right(ends, run.first, gap)
        if touched > gap:
            _leave(left, at, gaps, gap, touched)
            gap = touched
            at = starts[gap] if gap < len(starts) else run.end
        while gap < len(starts) and at < run.end:
            part = run.within(at, ends[gap])
            if at < part.first:
                left.starts.append(at)
                left.ends.append(part.first)
            found.append(ViewRun(part.first, part.clusters, layer, part.segment, part.number))
            at = part.end
            if at == ends[gap]:
                gap += 1
                at = starts[gap] if gap < len(starts) else run.end
            else:
                break
    _leave(left, at, gaps, gap, len(starts))
    return left


def _leave(left: _Gaps, at: int, gaps: _Gaps, first: int, end: int) -> None:
    """Gaps [first, end) are left as they are, the first of them from ``at`` on."""
    if first < end:
        left.starts.append(at)
        left.starts.extend(gaps.starts[first + 1 : end])
        left.ends.extend(gaps.ends[first:end])


def _first_of(run: ViewRun | Run) -> int:
    return run.first
