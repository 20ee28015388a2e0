"""A hint about what has changed, as far as a sample of it proves right."""

from __future__ import annotations

from pybackup.core.archive.intake import Intake, Piece
from pybackup.core.cow.claims import Claims
from pybackup.core.device import CLUSTER_SIZE, BlockDevice
from pybackup.core.trace import Trace

from .changes import BY_DIGEST, ChangeMap, DriveWay, Sample


class TrustedChanges:
    """What of one drive may have changed: all of it, where nobody knows, or whoever claims to know was wrong.

    Fixed: the drive, where its clusters go. Changing: ``way``, and the hint, which is dropped when it proves wrong.
    """

    def __init__(self, name: str, source: BlockDevice, claims: Claims, writer: Intake, trace: Trace) -> None:
        self.way = DriveWay()
        self._name, self._source, self._claims, self._writer, self._trace = name, source, claims, writer, trace
        self._map: ChangeMap | None = None

    async def begin(self, drive_id: int, changes: ChangeMap | None, way: DriveWay) -> None:
        """Take the hint, if there is one and it stands a sample; ``way`` is how the drive comes in so far."""
        self.way = way
        if changes is None:
            return
        try:
            wrong = await self._first_wrong(drive_id, changes)
        except OSError as error:
            self._drop(f"what was written since cannot be told: {error.strerror or error}")
            return
        if wrong is None:
            self._map, self.way = changes, DriveWay(changes.way)
        else:
            self._drop(f"byte {wrong * CLUSTER_SIZE} has changed, and was said to be unchanged")

    def _drop(self, why: str) -> None:
        self._trace("copy.hint_dropped", drive=self._name, why=why)
        self.way = DriveWay(BY_DIGEST, why)

    async def _first_wrong(self, drive_id: int, changes: ChangeMap) -> int | None:
        """The first cluster of a sample that has changed, although it is said not to have."""
        sample = Sample()
        last: set[int] = set()
        at = 0
        while at < self._claims.clusters:
            end, may_have_changed = await changes.run_at(at)
            if not may_have_changed:
                sample.add(at, end)
                last = {end - 1}
            at = end
        # Of a disk that has shrunk and grown again, what it lost lies at the end.
        for cluster in last.union(sample.clusters()):
            if await self._differs(drive_id, cluster):
                return cluster
        return None

    async def _differs(self, drive_id: int, cluster: int) -> bool:
        """Read a cluster and give it back: it is copied later, or passed over. A guest that overwrites it waits."""
        claimed = self._claims.claim(cluster, cluster + 1)
        if claimed is None:
            return False
        try:
            offset = cluster * CLUSTER_SIZE
            content = await self._source.pread(offset, min(CLUSTER_SIZE, self._claims.size - offset))
        finally:
            self._claims.settle(claimed, copied=False)
        return await self._writer.differs(Piece(drive_id, cluster, content))

    async def run_at(self, cluster: int) -> tuple[int, bool]:
        """(end, may have changed): clusters [cluster, end) are alike."""
        if self._map is None:
            return self._claims.clusters, True
        try:
            return await self._map.run_at(cluster)
        except OSError as error:
            # From here on all is read; what was passed over stands, for that was known.
            self._map = None
            self._drop(f"what was written since cannot be told: {error.strerror or error}")
            return self._claims.clusters, True
