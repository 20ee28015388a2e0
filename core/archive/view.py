"""What an archive holds, whether it is a full one or a delta with all its ancestors: any cluster of any drive.

Whatever reads at a place reads through this, and does not know how long the chain is. A cluster is looked up in each
archive, the newest first, until one has it.
"""

from __future__ import annotations

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
        gaps = [(first, end)]
        found: list[ViewRun] = []
        for layer in self._layers[drive_id]:
            if gaps[-1][1] > layer.clusters:
                break
            gaps = list(_fill(layer, gaps, found))
            if not gaps:
                found.sort(key=_first_of)
                return found
        raise ArchiveError(
            f"{self.name} is damaged: cluster {gaps[-1][1] - 1} of drive {self.header.by_id[drive_id].name} is missing"
        )

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
        (run,) = self.resolve(drive_id, cluster, cluster + 1)
        if run.segment is None:
            return ZERO_CLUSTER
        return run.layer.archive.read_stored(run.segment, run.number, run.layer.drive_id, cluster)


def _fill(layer: Layer, gaps: Sequence[tuple[int, int]], found: list[ViewRun]) -> Iterator[tuple[int, int]]:
    """Add to ``found`` what a layer has of the gaps; gives those that are left, in order.

    The layer is asked once: in a long chain there are many gaps.
    """
    runs = layer.archive.runs_between(layer.drive_id, gaps[0][0], gaps[-1][1])
    number = 0
    for at, end in gaps:
        while number < len(runs) and runs[number].first < end:
            if runs[number].end > at:
                run = runs[number].within(at, end)
                if run.first > at:
                    yield at, run.first
                found.append(ViewRun(run.first, run.clusters, layer, run.segment, run.number))
                at = run.end
            if runs[number].end > end:  # the next gap may have more of it
                break
            number += 1
        if at < end:
            yield at, end


def _first_of(run: ViewRun | Run) -> int:
    return run.first
