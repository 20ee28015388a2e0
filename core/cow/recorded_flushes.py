"""Flushes of a disk that is being restored: first its data, then the record of what of it is there.

What the record does not tell is fetched again after a power failure, over whatever lies there: so a cluster stands in
it only when its data was flushed before, and a guest's flush is answered only when it stands there.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from typing import Protocol

from bitarray import bitarray

from pybackup.core.device import BlockDevice
from pybackup.core.inflight import Range

from .sparse_bits import SparseBits

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class PresenceRecord(Protocol):
    """Remembers which clusters are there, durably. Failures are OSError."""

    @property
    def wants_all(self) -> bool:
        """Whether it would rather be told everything once more, to become short again."""
        ...

    async def add(self, runs: Sequence[tuple[int, int]]) -> None:
        """These are there, too (first cluster, clusters); all of them durable by now."""
        ...

    async def replace(self, absent: bitarray | SparseBits) -> None:
        """All is there but the set bits; durable by now."""
        ...

    async def remove(self) -> None:
        """All is there: there is nothing to remember any more."""
        ...

    async def close(self) -> None:
        """Let go of it, as it is."""
        ...


class RecordedFlushes:
    """The flushes of one disk.

    Fixed: the disk, and how to ask what is not there. Changing, in the event loop only: the record, until it is given
    up; the runs of clusters that are not in it yet; and the failure after which none succeeds: the kernel forgets what
    it could not write, and a second try would say that all is well.
    """

    def __init__(
        self, disk: BlockDevice, record: PresenceRecord | None, absent: Callable[[], bitarray | SparseBits]
    ) -> None:
        """``absent``: gives a bitmap of the clusters that are not there."""
        self._disk, self._record, self._absent = disk, record, absent
        self._unrecorded: list[tuple[int, int]] = []
        self._asked = self._done = 0
        self._turn = asyncio.Lock()
        self.failure: OSError | None = None

    @property
    def has_unrecorded(self) -> bool:
        """Whether there is anything that a flush would record."""
        return bool(self._unrecorded)

    def note(self, there: Range) -> None:
        """These clusters are there, of which the record does not know."""
        if self._record is None:
            return
        first, count = self._unrecorded[-1] if self._unrecorded else (0, 0)
        if count and first + count == there.start:
            self._unrecorded[-1] = first, there.end - first
        else:
            self._unrecorded.append((there.start, there.end - there.start))

    async def flush(self) -> None:
        """Return when all that was written before is durable, and recorded (OSError). Many at once are one."""
        self._asked += 1
        asked = self._asked
        async with self._turn:
            if self._done < asked:
                covered = self._asked
                await self._flush_all()
                self._done = covered

    async def _flush_all(self) -> None:
        if self.failure is not None:
            raise OSError(errno.EIO, f"an earlier flush failed: {self.failure.strerror}", self._disk.name)
        record = self._record
        # What is noted from here on may not be covered by the flush.
        absent = self._absent() if record is not None and record.wants_all else None
        noted, self._unrecorded = self._unrecorded, []
        try:
            await self._flush_disk()
            if record is not None and (absent is not None or noted):
                await self._record_all(record, absent, noted)
        except BaseException:
            self._unrecorded = noted + self._unrecorded
            raise

    async def _flush_disk(self) -> None:
        try:
            await self._disk.flush()
        except OSError as error:
            self.failure = error
            raise

    async def _record_all(
        self, record: PresenceRecord, absent: bitarray | SparseBits | None, noted: list[tuple[int, int]]
    ) -> None:
        try:
            await (record.add(noted) if absent is None else record.replace(absent))
        except OSError as error:
            if error.errno not in _NO_ROOM:
                self.failure = error
            raise

    async def give_up_record(self) -> None:
        """All is there, and recorded as that: nothing has to be remembered any more (OSError: it still is)."""
        async with self._turn:
            if self._record is not None:
                await self._record.remove()
                self._record = None

    async def close(self) -> None:
        """Let go of the record, as it is."""
        if self._record is not None:
            await self._record.close()
