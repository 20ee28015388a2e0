"""The filter that a guest's requests pass through while a disk is being restored: what is needed is fetched first.

Copy-before-write turned round. A cluster is copied from the archive to the disk before a guest's read or a part of a
write needs it; a write of a whole cluster, zeros and trims need no fetch. A dirty bit means *not there yet*, and claim
and settle keep apart who fetches, who writes, and who waits.

What is durable of it, and remembered as that, is the matter of recorded_flushes.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

from pybackup.core.device import CLUSTER_SIZE, BlockDevice, BlockStatus, Buffer
from pybackup.core.inflight import Range

from .claims import Claims
from .recorded_flushes import PresenceRecord, RecordedFlushes

CLUSTERS_AT_ONCE = 16
"""Clusters fetched at once: 1 MiB."""
ZEROS_AT_ONCE = 1024
"""Clusters of which zeros are written at once: 64 MiB, for which a guest may have to wait."""
STATUS_STEP = 256
"""Extents in one answer, about."""


class CopyBeforeAccess:
    """A disk in front of another one, whose contents come from a third when they are needed.

    Fixed: ``child``, which is written, at least as large as ``source``, which is read. Changing, in the event loop
    only: the claims; whether zeros must be written even where the disk was new; how many guests' requests wait for a
    fetch; and what is not recorded yet, by the flushes.
    """

    read_only = False

    def __init__(
        self,
        child: BlockDevice,
        source: BlockDevice,
        *,
        is_new: bool,
        record: PresenceRecord | None = None,
        there: Iterable[tuple[int, int]] = (),
        keeps_reads: bool = True,
    ) -> None:
        """``is_new``: the child reads as zeros all over. ``there``: runs of clusters that are there already.

        ``keeps_reads``: what a guest reads is kept on the child; else only what it writes.
        """
        self.child, self.source = child, source
        self.size, self.name = source.size, child.name
        self.claims = Claims(self.size)
        for first, count in there:
            self.claims.set_clean(first, first + count)
        self.charge: Callable[[int], None] = lambda _: None
        self._needs_zeros = not is_new
        self._flushes = RecordedFlushes(child, record, self.claims.left)
        self._keeps_reads = keeps_reads
        self._waiting = 0
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()

    @property
    def is_whole(self) -> bool:
        """Whether every cluster is there."""
        return self.claims.is_finished

    @property
    def left(self) -> int:
        """Bytes that are not there yet, about."""
        return min(self.size, self.claims.dirty_bytes)

    # -- reads --

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read, after what is missing was fetched; EIO where it cannot be."""
        first, end = _clusters_of(offset, length)
        if not self.claims.is_untouchable(first, end):
            return await self.child.pread(offset, length)
        if not self._keeps_reads:
            return await self._read_mixed(offset, length)
        try:
            with self._needed():
                content = await self._bring(first, end)
        except _NotKeptError:
            # The disk is full, or broken; the archive is not.
            return await self._read_mixed(offset, length)
        if content is None:
            return await self.child.pread(offset, length)
        return bytes(memoryview(content)[offset - first * CLUSTER_SIZE :][:length])

    async def _read_mixed(self, offset: int, length: int) -> Buffer:
        """Read what is there from the child, and all else from the source."""
        parts: list[Buffer] = []
        end = offset + length
        while offset < end:
            low, high = _clusters_of(offset, end - offset)
            run_end, there = self.claims.run_at(low, high)
            behind = min(end, run_end * CLUSTER_SIZE)
            parts.append(await (self.child if there else self.source).pread(offset, behind - offset))
            offset = behind
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Read at once what is there, if the child can."""
        if self.claims.is_untouchable(*_clusters_of(offset, length)):
            return None
        return self.child.read_now(offset, length)

    # -- fetching --

    @contextlib.contextmanager
    def _needed(self) -> Iterator[None]:
        """Within the body a guest waits for a fetch: whoever fetches in the background lets it go first."""
        self._waiting += 1
        self._nobody_waits.clear()
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._nobody_waits.set()

    async def nobody_waits(self) -> None:
        """Return at a moment when no guest waits for a fetch."""
        while self._waiting:
            await self._nobody_waits.wait()

    async def _bring(self, first: int, end: int) -> Buffer | None:
        """Return when clusters [first, end) are there (OSError); their bytes, if they came in one piece just now."""
        while True:
            claimed = self.claims.claim(first, end, CLUSTERS_AT_ONCE)
            if claimed is not None:
                content = await self._fetch(claimed)
                if (claimed.start, claimed.end) == (first, end):
                    return content
            elif self.claims.is_in_flight(first, end):
                await self.claims.wait_until_free(first, end)
            else:
                return None

    async def bring(self, first: int, end: int) -> None:
        """Fetch what nobody fetches of clusters [first, end) (OSError), and do not wait for what others fetch."""
        while (claimed := self.claims.claim(first, end, CLUSTERS_AT_ONCE)) is not None:
            await self._fetch(claimed)

    async def bring_zeros(self, first: int, end: int) -> None:
        """As bring(), of clusters of which the source has said that they are zero, however many."""
        while (claimed := self.claims.claim(first, end, ZEROS_AT_ONCE if self._needs_zeros else None)) is not None:
            with self._settled(claimed) as settle:
                offset, size = self._bytes_of(claimed)
                await self._zero(offset, size)
                settle()

    async def _fetch(self, claimed: Range) -> Buffer:
        """Copy a claim; its bytes."""
        offset, size = self._bytes_of(claimed)
        self.charge(size)
        with self._settled(claimed) as settle:
            content = await self._read_source(offset, size)
            settle()
        return content

    async def _read_source(self, offset: int, size: int) -> Buffer:
        """Read from the source, and write to the child."""
        parts: list[Buffer] = []
        end = offset + size
        while offset < end:
            for status in await self.source.extents(offset, end - offset):
                length = min(status.end, end) - offset
                content = bytes(length) if status.zero else await self.source.pread(offset, length)
                with _keeping(self.name):
                    await (self._zero(offset, length) if status.zero else self._write_child(offset, content))
                parts.append(content)
                offset += length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _zero(self, offset: int, length: int) -> None:
        if self._needs_zeros:
            await self.child.write_zeroes(offset, length)

    @contextlib.contextmanager
    def _settled(self, *claims: Range) -> Iterator[Callable[[], None]]:
        """Settle claims after the body: they are there if it calls what it is given, else as absent as before."""
        copied: list[bool] = []
        try:
            yield lambda: copied.append(True)
        finally:
            for claimed in claims:
                self.claims.settle(claimed, copied=bool(copied))
                if copied:
                    self._flushes.note(claimed)

    # -- changes --

    async def pwrite(self, offset: int, data: Buffer) -> None:
        """Write, after what is missing around it was fetched."""
        await self._change(offset, len(data), lambda: self._write_child(offset, data))

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        """Write zeros, after what is missing around them was fetched."""
        await self._change(
            offset, length, lambda: self.child.write_zeroes(offset, length, may_punch=may_punch, fast_only=fast_only)
        )

    async def _write_child(self, offset: int, data: Buffer) -> None:
        if not self.child.write_now(offset, data):
            await self.child.pwrite(offset, data)

    async def _change(self, offset: int, length: int, change: Callable[[], Awaitable[None]]) -> None:
        if not length:
            return
        first, end = _clusters_of(offset, length)
        low, high = self._whole_clusters(offset, length)
        if self.claims.is_untouchable(first, end):
            with self._needed():
                for edge in {first, end - 1}:
                    if not low <= edge < high:
                        await self._bring(edge, edge + 1)
                await self.claims.wait_until_free(low, high)
        # Nothing is awaited between that moment and these claims.
        claims = self._claim_all(low, high)
        with self._settled(*claims) as settle:
            try:
                await change()
            except BaseException as error:
                # A part may have been written where there were zeros, and the archive's content counts again.
                self._needs_zeros |= bool(claims) and not is_unsupported(error)
                raise
            settle()

    def _claim_all(self, low: int, high: int) -> list[Range]:
        """All that is not there of clusters [low, high)."""
        claims: list[Range] = []
        while low < high and (claimed := self.claims.claim(low, high)) is not None:
            claims.append(claimed)
        return claims

    async def discard(self, offset: int, length: int) -> None:
        """Discard what is there, and let what is not be there as zeros, where that costs nothing.

        What lay on the disk before must never show: where zeros would have to be written, the trim is not heeded.
        """
        if not length:
            return
        there = [(at, size) for at, size, there in self._runs(offset, length) if there]
        low, high = self._whole_clusters(offset, length)
        await self.claims.wait_until_free(low, high)
        for claimed in self._claim_all(low, high):
            with self._settled(claimed) as settle:
                if await self._zero_fast(*self._bytes_of(claimed)):
                    settle()
        for at, size in there:
            await self.child.discard(at, size)

    async def _zero_fast(self, offset: int, length: int) -> bool:
        """Whether the range reads as zeros now, which took no writing."""
        try:
            await self.child.write_zeroes(offset, length, fast_only=True)
        except OSError as error:
            if is_unsupported(error):
                return False
            raise
        return True

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write at once where all that it touches is there, if the child can."""
        if self.claims.is_untouchable(*_clusters_of(offset, len(data))):
            return False
        return self.child.write_now(offset, data)

    # -- what is durable --

    async def flush(self) -> None:
        """Return when every write answered before is durable, and what is there is recorded, durably."""
        await self._flushes.flush()

    @property
    def failure(self) -> OSError | None:
        """Why nothing that is written can be made durable any more."""
        return self._flushes.failure

    @property
    def has_unrecorded(self) -> bool:
        """Whether there is anything that a flush would record."""
        return self._flushes.has_unrecorded

    async def finish(self) -> None:
        """All is there: make it durable, and give up the record; from now on this is the child and nothing else."""
        assert self.is_whole
        await self._flushes.flush()
        await self._flushes.give_up_record()

    async def close(self) -> None:
        """Close the child and the record. Does not flush."""
        await self._flushes.close()
        await self.child.close()

    # -- telling --

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """What is there as the child says, the rest as the source says."""
        found: list[BlockStatus] = []
        for at, size, there in self._runs(offset, length):
            some = await (self.child if there else self.source).extents(at, size)
            found += some
            if len(found) >= STATUS_STEP or some[-1].end < at + size:
                break
        return found

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, bytes, whether it is there) of the runs within a range."""
        end = offset + length
        while offset < end:
            run_end, there = self.claims.run_at(*_clusters_of(offset, end - offset))
            behind = min(end, run_end * CLUSTER_SIZE)
            yield offset, behind - offset, there
            offset = behind

    def _whole_clusters(self, offset: int, length: int) -> tuple[int, int]:
        """[low, high): the clusters that a range of bytes covers wholly, the last of the disk to its end."""
        end = offset + length
        high = self.claims.clusters if end == self.size else end // CLUSTER_SIZE
        low = -(-offset // CLUSTER_SIZE)
        return low, max(low, high)

    def _bytes_of(self, claimed: Range) -> tuple[int, int]:
        """(offset, length) in bytes of a claim; the last cluster of a drive may be partial."""
        offset = claimed.start * CLUSTER_SIZE
        return offset, min(claimed.end * CLUSTER_SIZE, self.size) - offset


class _NotKeptError(OSError):
    """What was fetched could not be written to the disk."""


@contextlib.contextmanager
def _keeping(name: str) -> Iterator[None]:
    """Within the body a failure is one of the disk that fills."""
    try:
        yield
    except OSError as error:
        raise _NotKeptError(error.errno, f"cannot write {name}: {error.strerror}") from error


def is_unsupported(error: BaseException) -> bool:
    """Whether a device says that it cannot do this, and has changed nothing."""
    return isinstance(error, OSError) and error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP)


def _clusters_of(offset: int, length: int) -> tuple[int, int]:
    """[first, end): the clusters that a range of bytes touches."""
    return offset // CLUSTER_SIZE, -(-(offset + length) // CLUSTER_SIZE)
