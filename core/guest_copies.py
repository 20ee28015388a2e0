"""Copies that a guest's request makes necessary: the old content is saved before it changes.

One of these guards one drive for the length of one backup. The guest's request waits here until every cluster that it
touches is safe: copied by us, or by somebody who was at it already.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from enum import StrEnum

from pybackup.formats.clusters import Cluster, scan

from .block_copy import BlockCopy
from .device import CLUSTER_SIZE, BlockDevice, Buffer
from .errors import PybackupError, SourceError, TargetError
from .inflight import Range
from .old_data import OldData
from .trace import Trace

PIECE = 16
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
        copy: BlockCopy,
        old_data: OldData,
        on_error: OnError,
        timeout: float | None,
        copy_on_read: bool,
        charge: Callable[[int], None],
        break_backup: Callable[[BaseException], None],
        saved: Callable[[Sequence[Cluster], int], None],
        trace: Trace,
    ) -> None:
        self._drive_id, self._name = drive_id, name
        self._source, self._copy, self._old_data = source, copy, old_data
        self._on_error, self._timeout = on_error, timeout
        self._charge, self._break_backup, self._saved, self._trace = charge, break_backup, saved, trace
        self.copy_on_read = copy_on_read
        self._over = False

    def must_wait(self, offset: int, length: int) -> bool:
        """Whether a change of these bytes has to go through before_change()."""
        return self._copy.is_untouchable(offset // CLUSTER_SIZE, -(-(offset + length) // CLUSTER_SIZE))

    async def before_change(self, offset: int, length: int) -> None:
        """Return when these bytes may change; OSError (EIO) if they must not."""
        first, end = offset // CLUSTER_SIZE, -(-(offset + length) // CLUSTER_SIZE)
        while not self._over:
            await self._copy.wait_until_free(first, end)
            claimed = self._copy.claim(first, end)
            if claimed is None:
                return
            if claimed.end - claimed.start > PIECE:
                claimed = self._smaller(claimed)
            await self._save(claimed)

    def _smaller(self, claimed: Range) -> Range:
        self._copy.settle(claimed, copied=False)
        smaller = self._copy.claim(claimed.start, claimed.start + PIECE)
        assert smaller is not None
        return smaller

    async def _save(self, claimed: Range) -> None:
        copied = False
        try:
            content = await self._read_old(claimed)
            await self._hand_over(claimed, content)
            copied = True
        except (OSError, PybackupError, TimeoutError) as error:
            self._failed(claimed, error)
        finally:
            self._copy.settle(claimed, copied=copied)

    async def _read_old(self, claimed: Range) -> Buffer:
        offset = claimed.start * CLUSTER_SIZE
        size = min(claimed.end * CLUSTER_SIZE, self._copy.size) - offset
        content = self._source.read_now(offset, size)
        return await self._source.pread(offset, size) if content is None else content

    async def _hand_over(self, claimed: Range, content: Buffer) -> None:
        clusters = scan(content)
        self._charge(len(content))
        put = self._old_data.put(self._drive_id, claimed.start, clusters, content)
        if self._timeout is None:
            await put
        else:
            await asyncio.wait_for(put, self._timeout)
        self._saved(clusters, claimed.start)
        self._trace("copy.guest", drive=self._name, first=claimed.start, clusters=len(clusters))

    def _failed(self, claimed: Range, error: Exception) -> None:
        """Apply the policy to old data that could not be saved."""
        if self._over or self._old_data.closed:
            return
        if self._on_error is OnError.BREAK_GUEST:
            raise OSError(errno.EIO, f"the old data of drive {self._name} could not be saved for the backup")
        self._over = True
        self._break_backup(self._reason(claimed, error))

    def _reason(self, claimed: Range, error: Exception) -> PybackupError:
        if isinstance(error, PybackupError):
            return error
        offset = claimed.start * CLUSTER_SIZE
        if isinstance(error, TimeoutError):
            return TargetError(
                f"the archive is too slow: a guest's write to drive {self._name} at byte {offset} waited"
                f" {self._timeout:g} s for room; a larger --cow-buffer or --fleece would help"
            )
        return SourceError(f"cannot read drive {self._name} at byte {offset}: {error.strerror or error}")  # type: ignore[attr-defined]

    async def read_and_save(self, offset: int, length: int) -> Buffer | None:
        """Use a guest's read to save what it touches: the bytes read, or None if there is nothing to save."""
        first, end = offset // CLUSTER_SIZE, -(-(offset + length) // CLUSTER_SIZE)
        if self._over or end - first > PIECE or not self._copy.is_dirty(first, end):
            return None
        claimed = self._copy.claim(first, end)
        if claimed is None or (claimed.start, claimed.end) != (first, end):
            if claimed is not None:
                self._copy.settle(claimed, copied=False)
            return None
        copied = False
        try:
            content = await self._read_old(claimed)
            if not self._old_data.has_room(len(content)):
                return self._part(content, claimed, offset, length)
            await self._hand_over(claimed, content)
            copied = True
            return self._part(content, claimed, offset, length)
        finally:
            self._copy.settle(claimed, copied=copied)

    @staticmethod
    def _part(content: Buffer, claimed: Range, offset: int, length: int) -> Buffer:
        start = offset - claimed.start * CLUSTER_SIZE
        return memoryview(content)[start : start + length]

    def end(self) -> None:
        """The backup has ended: nobody waits for it any longer."""
        self._over = True
