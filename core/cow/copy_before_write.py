"""The filter that a guest's requests pass through: every change waits until the old data is safe.

QEMU's ``block/copy-before-write.c``. While no backup runs, the filter costs one comparison a request. Arming is done
for all drives of a backup at one instant, at which no change is in flight on any of them (see freeze()).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from pybackup.core.device import BlockDevice, BlockStatus, Buffer
from pybackup.core.errors import BusyError, SourceError
from pybackup.core.inflight import InflightRanges

from .drive_record import DriveRecord
from .guest_copies import GuestCopies


class CopyBeforeWrite:
    """A device in front of another one.

    Fixed: ``child``, ``record``. Changing, in the event loop only: the guard while a backup runs, whether the drive is
    frozen, and the changes in flight (byte ranges).
    """

    def __init__(self, child: BlockDevice, record: DriveRecord | None = None) -> None:
        """``record``: learns of every change, for backups that store what has changed since an earlier one."""
        self.child, self.record = child, record
        self._guard: GuestCopies | None = None
        self._thawed: asyncio.Event | None = None
        self._changes = InflightRanges()

    @property
    def size(self) -> int:
        """Bytes, as the child says."""
        return self.child.size

    @property
    def name(self) -> str:
        """The child's name."""
        return self.child.name

    @property
    def read_only(self) -> bool:
        """As the child says."""
        return self.child.read_only

    @property
    def is_armed(self) -> bool:
        """Whether a backup of this drive is running."""
        return self._guard is not None

    # -- a backup begins and ends --

    def hold(self) -> None:
        """From now on no new change begins. BusyError where another backup of this drive begins or runs."""
        if self._thawed is not None or self._guard is not None:
            raise BusyError(f"a backup of {self.name} is running already")
        self._thawed = asyncio.Event()

    async def quiet(self) -> None:
        """Return at a moment when no change is in flight."""
        await self._changes.wait_until_empty()

    def arm(self, guard: GuestCopies) -> None:
        """From now on every change goes through ``guard`` first. Only while held and quiet."""
        assert self._thawed is not None and not self._changes and self._guard is None
        self._guard = guard
        if self.record is not None:
            self.record.begin()

    def release(self) -> None:
        """Let changes begin again."""
        thawed, self._thawed = self._thawed, None
        if thawed is not None:
            thawed.set()

    def disarm(self, guard: GuestCopies) -> None:
        """Back to passing everything through, if it is ``guard`` that everything goes through."""
        guard.end()
        if self._guard is guard:
            self._guard = None

    # -- changes --

    async def pwrite(self, offset: int, data: Buffer) -> None:
        """Write, once the old data is safe."""
        await self._change(offset, len(data), lambda: self._write_child(offset, data))

    async def _write_child(self, offset: int, data: Buffer) -> None:
        if not self.child.write_now(offset, data):
            await self.child.pwrite(offset, data)

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        """Write zeros, once the old data is safe."""
        await self._change(
            offset, length, lambda: self.child.write_zeroes(offset, length, may_punch=may_punch, fast_only=fast_only)
        )

    async def discard(self, offset: int, length: int) -> None:
        """Discard, once the old data is safe."""
        await self._change(offset, length, lambda: self.child.discard(offset, length))

    async def _change(self, offset: int, length: int, change: Callable[[], Awaitable[None]]) -> None:
        guarded_by: GuestCopies | None = None
        while self._thawed is not None or self._guard not in (None, guarded_by):
            # Whatever is waited for, the world may have changed meanwhile: another backup, another freeze.
            if self._thawed is not None:
                await self._thawed.wait()
            elif self._guard is not None:
                guarded_by = self._guard
                await guarded_by.before_change(offset, length)
        in_flight = self._changes.begin(offset, offset + length)
        if self.record is not None:
            self.record.mark(offset, length)
        try:
            await change()
        finally:
            self._changes.finish(in_flight)

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write at once if nothing has to be saved first."""
        if self._thawed is not None:
            return False
        if self._guard is not None and not self._guard.save_now(offset, len(data)):
            return False
        if self.record is not None:
            self.record.mark(offset, len(data))
        return self.child.write_now(offset, data)

    # -- what changes nothing --

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read; with copy-on-read the backup makes use of it."""
        if self._guard is not None and self._guard.wants(offset, length):
            saved = await self._guard.read_and_save(offset, length)
            if saved is not None:
                return saved
        return await self.child.pread(offset, length)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Read at once if the child can and the backup has no use for it."""
        if self._guard is not None and self._guard.wants(offset, length):
            return None
        return self.child.read_now(offset, length)

    async def flush(self) -> None:
        """Pass on."""
        await self.child.flush()

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """Pass on."""
        return await self.child.extents(offset, length)

    async def close(self) -> None:
        """Close the child; a backup that runs must have ended before."""
        await self.child.close()


async def freeze(filters: Iterable[tuple[CopyBeforeWrite, GuestCopies]], timeout: float | None = None) -> None:
    """Arm all filters at one instant, at which no change is in flight on any drive.

    BusyError, with nothing changed, where another backup of one of them begins or runs. SourceError, likewise, where a
    change does not end within ``timeout`` seconds, for all that time every guest waits; None: never.
    """
    pairs = list(filters)
    held: list[CopyBeforeWrite] = []
    try:
        for device, _ in pairs:
            device.hold()
            held.append(device)
        await _all_quiet(held, timeout)
        # Nothing is awaited from here to release(): this is the instant.
        for device, guard in pairs:
            device.arm(guard)
    finally:
        for device in held:
            device.release()


async def _all_quiet(devices: Iterable[CopyBeforeWrite], timeout: float | None) -> None:
    # Not wait_for(): Python 3.11's loses a cancellation that comes together with the end.
    try:
        async with asyncio.timeout(timeout):
            for device in devices:
                await device.quiet()
    except TimeoutError as error:
        raise SourceError(
            f"cannot begin: a write to {device.name} that was under way did not end within {timeout:g} seconds, and"
            " guests must not wait any longer"
        ) from error
