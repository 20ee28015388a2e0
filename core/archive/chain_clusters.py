"""All clusters of a chain of archives, each once, and what the archive that is made of them tells of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pybackup.core.devices.unreadable import LostRange, LostRanges
from pybackup.formats.archive import ZeroRun
from pybackup.formats.clusters import scan
from pybackup.formats.vma import Header
from pybackup.formats.vma_layout import CLUSTER_SIZE, CLUSTERS_PER_EXTENT, VMSTATE_NAME

from .chain_walk import FETCHES, FETCHES_SIZE, ChainWalk, StoredRuns, Surviving
from .identity import ArchiveIdentity
from .read_ahead import Sized, in_order
from .view import ArchiveView

_OF_DELTAS = frozenset({"parent", "chain", "replaces"})
"""What the directory of a delta tells that is not so of a full archive."""


class ChainClusters:
    """What a merge of a chain reads. The first damage ends it (ArchiveError).

    Fixed: the view, who its archives are, the pool. Changing, by the one thread that iterates: how far it is.
    """

    def __init__(
        self,
        view: ArchiveView,
        identities: Sequence[ArchiveIdentity],
        pool: ThreadPoolExecutor,
        *,
        stop: Callable[[], None],
        largest_frame: int | None = None,
    ) -> None:
        """``largest_frame``: bytes of frames that may be passed on as they are; None: any."""
        self.header: Header = view.header
        self.stop, self.notes = stop, list[str]()
        self.consumed: tuple[int, int] | None = None
        self._view, self._identities, self._pool = view, identities, pool
        self._largest = largest_frame

    def __iter__(self) -> Iterator[Surviving]:
        """Memory images in the order of their clusters, as other readers want them; then all else as it lies there."""
        ordered = [drive.drive_id for drive in self.header.drives if drive.name == VMSTATE_NAME]
        for drive_id in ordered:
            for some in in_order(self._pool, self._ordered(drive_id), FETCHES, FETCHES_SIZE):
                yield from some
        yield from ChainWalk(self._view.archives, self._pool, leave_out=ordered, largest_frame=self._largest)

    def _ordered(self, drive_id: int) -> Iterator[Sized]:
        for run in self._view.walk(drive_id):
            if run.segment is None:
                yield Sized(0, partial(list, [ZeroRun(drive_id, run.first, run.clusters)]))
                continue
            for first in range(run.first, run.end, CLUSTERS_PER_EXTENT):
                count = min(CLUSTERS_PER_EXTENT, run.end - first)
                yield Sized(2 * count * CLUSTER_SIZE, partial(self._read, drive_id, first, count))

    def _read(self, drive_id: int, first: int, count: int) -> list[Surviving]:
        clusters = (self._view.read_cluster(drive_id, cluster) for cluster in range(first, first + count))
        return [StoredRuns(drive_id, first, scan(b"".join(clusters)))]

    def about(self) -> dict[str, Any]:
        """What the newest archive tells of itself, as far as it is so of a full one; and what this one replaces."""
        newest = self._identities[0]
        told = {key: value for key, value in newest.about.items() if key not in _OF_DELTAS}
        replaced = {*newest.replaces} | ({newest.digest} if newest.digest is not None else set())
        told["replaces"] = sorted(digest.hex() for digest in replaced)
        if lost := _unreadable(self._identities):
            told["unreadable"] = lost
        return told


def _unreadable(identities: Sequence[ArchiveIdentity]) -> list[dict[str, Any]]:
    """What could not be read of the disks: also of those nights from which a later one took clusters unread."""
    found: list[LostRange] = []
    unread = {drive.name for drive in identities[0].drives}
    for identity in identities:
        sizes = {drive.name: drive.size for drive in identity.drives}
        unread &= sizes.keys()
        found += [one for one in _told_of(identity) if one.drive in unread and 0 <= one.offset < sizes[one.drive]]
        unread -= _read_whole(identity)
    return LostRanges(found).as_json()


def _told_of(identity: ArchiveIdentity) -> list[LostRange]:
    try:
        return list(LostRanges.from_json(identity.about.get("unreadable") or ()))
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _read_whole(identity: ArchiveIdentity) -> set[str]:
    """The drives of which all was read for an archive, holes aside: what an older one could not read was read then."""
    told = identity.about.get("drives")
    drives = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    if not identity.is_delta:
        return {drive.name for drive in identity.drives}
    return {str(one.get("name")) for one in drives if one.get("way") in ("full", "digest")}
