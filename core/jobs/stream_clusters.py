"""All clusters of an archive that is read from its beginning to its end: another program's, or one through a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pybackup.core.archive.chain_walk import StoredRuns, Surviving
from pybackup.core.archive.read_ahead import Sized, in_order
from pybackup.core.archive.stream import ArchiveStream
from pybackup.formats.archive import ZeroRun
from pybackup.formats.clusters import scan
from pybackup.formats.vma import Header
from pybackup.formats.vma_layout import CLUSTER_SIZE

from .walk import runs_of

SCANS, SCANS_SIZE = 4, 32 << 20
"""Runs of clusters in which zeros are looked for ahead, and bytes that they may take."""


class StreamClusters:
    """What a merge of one archive reads, whoever wrote it. The first damage ends it (ArchiveError).

    Fixed: the stream, the pool. Changing, by the one thread that iterates: how far it is, and ``notes``.
    """

    def __init__(self, stream: ArchiveStream, pool: ThreadPoolExecutor) -> None:
        self.header: Header = stream.header
        self.stop: Callable[[], None] = stream.stop
        self.notes: list[str] = []
        self._stream, self._pool = stream, pool
        self._whole = {drive.drive_id for drive in stream.header.drives}

    @property
    def consumed(self) -> tuple[int, int] | None:
        """(done, whole) bytes of the archive, where its size is known."""
        return self._stream.consumed

    def __iter__(self) -> Iterator[Surviving]:
        """All clusters in the order of the archive; zeros for what a memory image does not have."""
        for some in in_order(self._pool, self._calls(), SCANS, SCANS_SIZE):
            yield from some
        for name, size in self._stream.ends_early():
            drive = self.header.by_name[name]
            first = size // CLUSTER_SIZE
            yield ZeroRun(drive.drive_id, first, drive.clusters - first)
            self.notes.append(f"drive {name} ends after {size:,} bytes, as memory may; zeros follow to its full size")
        if not self._stream.protects_data:
            self.notes.append(f"nothing in {self._stream.name} proves its data: what flipped in it before, nobody sees")

    def _calls(self) -> Iterator[Sized]:
        zeros: ZeroRun | None = None
        for checked in self._stream:
            for run in runs_of(checked.extent, self._whole):
                first, count = run.offset // CLUSTER_SIZE, run.length // CLUSTER_SIZE
                if run.buffers is None and zeros and zeros[:2] == (run.drive_id, first - zeros.clusters):
                    zeros = zeros._replace(clusters=zeros.clusters + count)
                    continue
                if zeros:
                    yield Sized(0, partial(list, [zeros]))
                zeros = None if run.buffers is not None else ZeroRun(run.drive_id, first, count)
                if run.buffers is not None:
                    yield Sized(2 * run.length, partial(_scan, run.drive_id, first, run.buffers))
        if zeros:
            yield Sized(0, partial(list, [zeros]))

    def about(self) -> dict[str, Any]:
        """What the archive tells of itself, which is nothing where it has no index."""
        told = {key: value for key, value in (self._stream.about or {}).items() if key != "replaces"}
        if self._stream.directory_digest is not None:
            replaced = (self._stream.about or {}).get("replaces")
            kept = [one for one in replaced if isinstance(one, str)] if isinstance(replaced, list) else []
            told["replaces"] = sorted({*kept, self._stream.directory_digest.hex()})
        return told


def _scan(drive_id: int, first: int, buffers: Sequence[memoryview]) -> list[Surviving]:
    content = b"".join(buffers)
    return [StoredRuns(drive_id, first, scan(content))]
