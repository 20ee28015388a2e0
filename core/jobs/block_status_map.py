"""Block status by clusters: which of them need not be read.

The status of a cluster stays true as long as the cluster is dirty: any change to it goes through
copy-before-write, which takes the cluster first. So it may be asked for ahead of the copying, in large pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

from pybackup.core.device import CLUSTER_SIZE, BlockDevice, BlockStatus

STEP = 64 << 30
"""Bytes asked for at once: a sparse terabyte takes 16 questions, and a fragmented file answers less."""


class BlockStatusMap:
    """Runs of zero and data clusters of one device, asked for as they are needed.

    Fixed: the device. Changing: the runs known ahead, by the one loop that walks over the drive.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._clusters = -(-device.size // CLUSTER_SIZE)
        self._runs: list[tuple[int, int, bool]] = []
        self._at = 0

    async def run_at(self, cluster: int) -> tuple[int, bool]:
        """(end, zero) of the run that holds ``cluster``: clusters [cluster, end) are alike."""
        while True:
            for at in range(self._at, len(self._runs)):
                start, end, zero = self._runs[at]
                if start <= cluster < end:
                    self._at = at
                    return end, zero
            await self._ask(cluster)

    async def _ask(self, cluster: int) -> None:
        offset = cluster * CLUSTER_SIZE
        length = min(STEP, self._device.size - offset)
        self._runs, self._at = [], 0
        at = cluster
        for status in await self._extents(offset, length):
            end_of_device = status.end >= self._device.size
            if status.zero:
                # Only clusters that are zero as a whole; a partial one at the end belongs to the data behind it.
                end = self._clusters if end_of_device else status.end // CLUSTER_SIZE
            else:
                end = min(self._clusters, -(-status.end // CLUSTER_SIZE))
            if end > at:
                self._append(at, end, status.zero)
                at = end
        if not self._runs:
            # The answer ended within one cluster: read it, that is always right.
            self._runs = [(cluster, cluster + 1, False)]

    async def _extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        try:
            return await self._device.extents(offset, length)
        except OSError:
            # Whoever cannot tell may still be able to read: that decides.
            return [BlockStatus(offset, length, zero=False, hole=False)]

    def _append(self, start: int, end: int, zero: bool) -> None:
        if self._runs and self._runs[-1][2] == zero:
            self._runs[-1] = (self._runs[-1][0], end, zero)
        else:
            self._runs.append((start, end, zero))
