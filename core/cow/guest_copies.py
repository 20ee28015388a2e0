"""Copies that a guest's request makes necessary: the old content is saved before it changes.

One of these guards one drive for the length of one backup. The guest's request waits here until every cluster that it
touches is safe: copied by us, or by somebody who was at it already.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from enum import StrEnum

from pybackup.core.device import CLUSTER_SIZE, BlockDevice, Buffer
from pybackup.core.errors import Advice, PybackupError, SourceError, TargetError
from pybackup.core.inflight import Range
from pybackup.core.trace import Trace

from .claims import Claims
from .old_data import OldData

CLUSTERS_AT_ONCE = 16
"""Clusters saved at once for one request: 1 MiB."""


class OnError(StrEnum):
    """Who suffers when old data cannot be saved."""

    BREAK_BACKUP = "break-backup"
    """The guest goes on, the backup fails: the default, for a backup must never take a machine down."""
    BREAK_GUEST = "break-guest"
    """The guest's request fails with EIO and changes nothing, the backup stays valid."""


class GuestCopies:
    """Saves old data of one drive.

    Fixed: all but ``_over``, which is set once, when the backup has ended in whatever way.
    """

    def __init__(
        self,
        *,
        drive_id: int,
        name: str,
        source: BlockDevice,
        claims: Claims,
        old_data: OldData,
        on_error: OnError,
        timeout: float | None,
        copy_on_read: bool,
        charge: Callable[[int], None],
        break_backup: Callable[[BaseException], None],
        trace: Trace,
        read_around: Callable[[int, int], Awaitable[Buffer]] | None = None,
    ) -> None:
        """``read_around`` reads what a plain read could not, where that is wanted, with zeros for what is lost."""
        self._drive_id, self._name = drive_id, name
        self._source, self._claims, self._old_data = source, claims, old_data
        self._on_error, self._timeout = on_error, timeout
        self._charge, self._break_backup, self._trace = charge, break_backup, trace
        self._read_around = read_around
        self.copy_on_read = copy_on_read
        self._over = False

    async def before_change(self, offset: int, length: int) -> None:
        """Return when these bytes may change; OSError (EIO) if they must not."""
        first, end = _clusters_of(offset, length)
        while not self._over:
            # First what nobody is at, then what others are at: else a large request waits for the background loop.
            claimed = self._claims.claim(first, end, CLUSTERS_AT_ONCE)
            if claimed is not None:
                await self._save(claimed)
            elif self._claims.is_in_flight(first, end):
                await self._claims.wait_until_free(first, end)
            else:
                return

    def save_now(self, offset: int, length: int) -> bool:
        """Like before_change(), if that needs no waiting: True when these bytes may change now."""
        first, end = _clusters_of(offset, length)
        while not self._over and self._claims.is_untouchable(first, end):
            if self._claims.is_in_flight(first, end):
                return False
            claimed = self._claims.claim(first, end, CLUSTERS_AT_ONCE)
            if claimed is None or not self._save_now(claimed):
                return False
        return True

    def _save_now(self, claimed: Range) -> bool:
        offset, size = self._bytes_of(claimed)
        reserved = copied = False
        try:
            reserved = self._old_data.reserve_now(size)
            if reserved and (content := self._source.read_now(offset, size)) is not None:
                self._put(claimed, content)
                copied = True
        except OSError:
            # before_change() meets the same error, and applies the policy to it.
            copied = False
        finally:
            self._settle(claimed, unused=size if reserved and not copied else 0, copied=copied)
        return copied

    async def _save(self, claimed: Range) -> None:
        """Room first, then the old data: what is read must have a place to be."""
        offset, size = self._bytes_of(claimed)
        reserved = copied = False
        try:
            await self._reserve(offset, size)
            reserved = True
            if not self._old_data.closed:
                self._put(claimed, await self._read_old(offset, size))
            copied = True
        except (OSError, PybackupError) as error:
            self._failed(claimed, error)
        finally:
            self._settle(claimed, unused=size if reserved and not copied else 0, copied=copied)

    def _settle(self, claimed: Range, *, unused: int, copied: bool) -> None:
        """End a claim, and give ``unused`` bytes of reserved room back."""
        if unused:
            self._old_data.give_up(unused)
        self._claims.settle(claimed, copied=copied)

    def _bytes_of(self, claimed: Range) -> tuple[int, int]:
        """(offset, length) in bytes of a claim; the last cluster of a drive may be partial."""
        offset = claimed.start * CLUSTER_SIZE
        return offset, min(claimed.end * CLUSTER_SIZE, self._claims.size) - offset

    async def _read_old(self, offset: int, size: int) -> Buffer:
        content = self._source.read_now(offset, size)
        if content is not None:
            return content
        try:
            return await self._source.pread(offset, size)
        except OSError:
            if self._read_around is None:
                raise
        return await self._read_around(offset, size)

    async def _reserve(self, offset: int, size: int) -> None:
        """Wait for room for the old data, as long as the policy says (TargetError)."""
        if self._old_data.reserve_now(size):
            return
        try:
            # Not wait_for(): Python 3.11's loses a cancellation, and takes a task for what seldom waits.
            async with asyncio.timeout(self._timeout):
                await self._old_data.reserve(size)
        except TimeoutError:
            raise TargetError(
                f"the archive is too slow: a guest's request to drive {self._name} at byte {offset} waited"
                f" {self._timeout:g} s for room",
                advice=Advice.MORE_ROOM,
            ) from None

    def _put(self, claimed: Range, content: Buffer) -> None:
        self._charge(len(content))
        self._old_data.put(self._drive_id, claimed.start, content)
        self._trace("copy.guest", drive=self._name, first=claimed.start, clusters=claimed.end - claimed.start)

    def _failed(self, claimed: Range, error: OSError | PybackupError) -> None:
        """Apply the policy to old data that could not be saved."""
        if self._over or self._old_data.closed:
            return
        if self._on_error is OnError.BREAK_GUEST:
            raise OSError(errno.EIO, f"the old data of drive {self._name} could not be saved for the backup")
        self._over = True
        self._break_backup(self._reason(claimed, error))

    def _reason(self, claimed: Range, error: OSError | PybackupError) -> PybackupError:
        if isinstance(error, PybackupError):
            return error
        offset = claimed.start * CLUSTER_SIZE
        return SourceError(f"cannot read drive {self._name} at byte {offset}: {error.strerror or error}")

    def wants(self, offset: int, length: int) -> bool:
        """Whether read_and_save() could make use of a read of these bytes."""
        first, end = _clusters_of(offset, length)
        return (
            self.copy_on_read
            and not self._over
            and end - first <= CLUSTERS_AT_ONCE
            and self._old_data.has_room((end - first) * CLUSTER_SIZE)
            and self._claims.is_dirty(first, end)
        )

    async def read_and_save(self, offset: int, length: int) -> Buffer | None:
        """Use a guest's read to save what it touches: the bytes read, or None if there is nothing to save."""
        first, end = _clusters_of(offset, length)
        claimed = self._claims.claim(first, end) if self.wants(offset, length) else None
        if claimed is None:
            return None
        at, size = self._bytes_of(claimed)
        reserved = copied = False
        try:
            reserved = (claimed.start, claimed.end) == (first, end) and self._old_data.reserve_now(size)
            if not reserved:
                return None
            content = await self._read_old(at, size)
            self._put(claimed, content)
            copied = True
            # A copy, for the buffer of a read belongs to the caller, and this one waits to be archived.
            return bytes(memoryview(content)[offset - at :][:length])
        except OSError:
            # Perhaps only the rest of the clusters cannot be read.
            return None
        finally:
            self._settle(claimed, unused=size if reserved and not copied else 0, copied=copied)

    def end(self) -> None:
        """The backup has ended: nobody waits for it any longer."""
        self._over = True


def _clusters_of(offset: int, length: int) -> tuple[int, int]:
    """[first, end): the clusters that a range of bytes touches."""
    return offset // CLUSTER_SIZE, -(-(offset + length) // CLUSTER_SIZE)
