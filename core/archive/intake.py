"""What takes the clusters that a backup job copies: an archive's writer here, or one in another process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from pybackup.core.device import CLUSTER_SIZE, Buffer
from pybackup.formats.cluster_index import DriveCounts
from pybackup.formats.clusters import ClusterRun, stored_bytes


class Piece(NamedTuple):
    """Clusters in a row of a drive, from cluster ``first`` on; ``content`` may end within the last one."""

    drive_id: int
    first: int
    content: Buffer


class Prepared(NamedTuple):
    """Clusters in a row, ready to be taken.

    ``content`` may end within the last cluster. ``runs``: what was found in it, where that is known here; ``places``:
    in a delta these are what differs from the parent, and each lies so many clusters behind the first.
    """

    content: Buffer
    runs: Sequence[ClusterRun] | None
    places: Sequence[int] | None = None

    @property
    def zero(self) -> int:
        """Bytes in blocks that are known to be zero, of what differs from the parent."""
        return sum(size - stored_bytes(run.mask, size) for run, size in self._sizes())

    @property
    def unchanged(self) -> int:
        """Bytes that are as the parent has them."""
        return 0 if self.places is None else len(self.content) - sum(size for _, size in self._sizes())

    def _sizes(self) -> Iterator[tuple[ClusterRun, int]]:
        """Each run, and how many of its bytes lie in the content."""
        at = 0
        for number, run in enumerate(self.runs or ()):
            if self.places is not None:
                at = self.places[number] * CLUSTER_SIZE
            yield run, min(len(self.content) - at, run.clusters * CLUSTER_SIZE)
            at += run.clusters * CLUSTER_SIZE


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

    @property
    def digest(self) -> bytes | None:
        """Of the archive's directory, once it is complete; None where no delta of it can be made."""
        ...

    async def start(self) -> None:
        """Get ready."""
        ...

    async def prepare(self, pieces: Sequence[Piece], pool: ThreadPoolExecutor) -> Sequence[Prepared]:
        """Do what can be done before the turn of these clusters comes, in the pool's threads."""
        ...

    async def take(self, drive_id: int, first: int, prepared: Prepared) -> None:
        """Take clusters in a row; waits while too much is under way."""
        ...

    async def put_zeros(self, drive_id: int, first: int, count: int) -> int:
        """Take zero clusters in a row; how many of them differ from the parent, where that is known here."""
        ...

    async def put_unchanged(self, drive_id: int, first: int, count: int) -> None:
        """Take clusters in a row that are as the parent of this delta has them."""
        ...

    async def differs(self, piece: Piece) -> bool:
        """Whether clusters are not as the parent of this delta has them."""
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
