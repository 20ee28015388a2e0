"""What takes the clusters that a backup job copies: an archive's writer here, or one in another process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from pybackup.core.device import CLUSTER_SIZE, Buffer
from pybackup.formats.cluster_index import DriveCounts
from pybackup.formats.clusters import ClusterRun, stored_bytes


class Prepared(NamedTuple):
    """Clusters in a row, ready to be taken.

    ``content`` may end within the last cluster. ``runs``: what was found in it, where that is known here.
    """

    content: Buffer
    runs: Sequence[ClusterRun] | None

    @property
    def zero(self) -> int:
        """Bytes in blocks that are known to be zero."""
        if self.runs is None:
            return 0
        left = zero = len(self.content)
        for run in self.runs:
            size = min(left, run.clusters * CLUSTER_SIZE)
            zero -= stored_bytes(run.mask, size)
            left -= size
        return zero


class Intake(Protocol):
    """Takes every cluster of every drive once. After start() exactly one of commit() and abort() is called."""

    @property
    def written(self) -> int:
        """Bytes of the archive so far."""
        ...

    @property
    def stored(self) -> int | None:
        """Bytes of data in the archive so far, before compression; None where whoever asks knows as much."""
        ...

    @property
    def counts(self) -> dict[int, DriveCounts]:
        """What each drive was found to hold, where that is known here."""
        ...

    async def start(self) -> None:
        """Get ready."""
        ...

    async def prepare(self, contents: Sequence[Buffer], pool: ThreadPoolExecutor) -> Sequence[Prepared]:
        """Do what can be done before the turn of these clusters comes, in the pool's threads."""
        ...

    async def take(self, drive_id: int, first: int, prepared: Prepared) -> None:
        """Take clusters in a row; waits while too much is under way."""
        ...

    async def put_zeros(self, drive_id: int, first: int, count: int) -> None:
        """Take zero clusters in a row."""
        ...

    async def drain(self) -> None:
        """Return when nothing that was taken is under way any more."""
        ...

    async def finish(self, about: dict[str, Any]) -> None:
        """That was all; ``about`` tells of the source."""
        ...

    async def commit(self) -> None:
        """Return when the output is durable and visible."""
        ...

    async def abort(self) -> None:
        """Drop everything. Never raises."""
        ...
