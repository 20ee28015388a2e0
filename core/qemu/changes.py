"""Which clusters of a frozen disk may have changed since the parent archive, as a dirty bitmap tells."""

from __future__ import annotations

from collections.abc import Sequence

from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.errors import SourceError
from pybackup.core.jobs.changes import BY_BITMAP
from pybackup.core.nbd.dirty_bitmap import DirtyRange, NbdDirtyBitmap
from pybackup.core.nbd.negotiation import Prepare
from pybackup.core.places.nbd_uri import NbdAddress

from .monitor import MonitorLostError


async def open_changes(address: NbdAddress, bitmap: str, prepare: Prepare, data_at_once: int) -> BitmapChanges | str:
    """What tells a disk's changes, by the name of the bitmap that its export offers; or why nothing does.

    ``prepare`` and ``data_at_once`` as for NbdDevice. MonitorLostError where all is lost.
    """
    try:
        opened = await NbdDirtyBitmap.connect(
            address, bitmap, granularity=CLUSTER_SIZE, prepare=prepare, data_at_once=data_at_once
        )
    except MonitorLostError:
        raise
    except SourceError as error:
        return str(error)
    return "QEMU does not offer its record of changes" if opened is None else BitmapChanges(opened)


class BitmapChanges:
    """A ChangeMap: asks the bitmap for one stretch after the other, as they are needed, and remembers one.

    Fixed: the bitmap. Changing: the runs known ahead, (first, end, changed) in clusters, at most as many as one reply
    tells.
    """

    way = BY_BITMAP

    def __init__(self, bitmap: NbdDirtyBitmap) -> None:
        self._bitmap = bitmap
        self._clusters = -(-bitmap.size // CLUSTER_SIZE)
        self._runs: list[tuple[int, int, bool]] = []
        self._at = 0

    async def run_at(self, cluster: int) -> tuple[int, bool]:
        """(end, may have changed) of clusters [cluster, end), which are alike (OSError, SourceError)."""
        while True:
            for at in range(self._at, len(self._runs)):
                first, end, changed = self._runs[at]
                if first <= cluster < end:
                    self._at = at
                    return end, changed
            await self._ask(cluster)

    async def abort(self) -> None:
        """Nothing more is asked: go without a word."""
        await self._bitmap.abort()

    async def _ask(self, cluster: int) -> None:
        self._runs, self._at = self._in_clusters(cluster, await self._bitmap.ranges(cluster * CLUSTER_SIZE)), 0

    def _in_clusters(self, cluster: int, ranges: Sequence[DirtyRange]) -> list[tuple[int, int, bool]]:
        """Only clusters that are clean as a whole have not changed."""
        runs: list[tuple[int, int, bool]] = []
        at = cluster
        for one in ranges:
            is_whole = one.dirty or one.end >= self._bitmap.size
            end = -(-one.end // CLUSTER_SIZE) if is_whole else one.end // CLUSTER_SIZE
            if end <= at:
                continue
            if runs and runs[-1][2] == one.dirty:
                runs[-1] = (runs[-1][0], end, one.dirty)
            else:
                runs.append((at, end, one.dirty))
            at = end
        # An answer that ends within one cluster says nothing of the rest of it.
        return runs or [(cluster, cluster + 1, True)]
