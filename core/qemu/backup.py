"""The backup of a running QEMU's disks: a backup job whose instant is made by fleecing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from pybackup.core.archive.intake import Intake
from pybackup.core.device import BlockDevice, BlockStatus, Buffer
from pybackup.core.devices.read_only import ReadOnlyDevice
from pybackup.core.errors import PybackupError
from pybackup.core.guest.consistency import Stillness
from pybackup.core.jobs.backup import BackupJob
from pybackup.core.jobs.changes import BY_DIGEST, DriveWay
from pybackup.core.jobs.copying import Drive
from pybackup.core.tasks import end, uninterrupted
from pybackup.core.trace import Trace

from .changes import BitmapChanges
from .disks import LeftOut, QemuDisk


class Freezer(Protocol):
    """What freezes disks that QEMU uses, for one backup, and has them read over NBD."""

    @property
    def disks(self) -> Sequence[QemuDisk]:
        """Which."""
        ...

    @property
    def begins_to_record(self) -> bool:
        """Whether changes are recorded from now on of disks of which they were not before."""
        ...

    @property
    def unrecorded(self) -> Sequence[LeftOut]:
        """The disks whose changes nobody records from now on, although that was wanted, each with the reason."""
        ...

    @property
    def unplugged(self) -> Sequence[str]:
        """The names of those that were unplugged from the machine meanwhile."""
        ...

    @property
    def changes(self) -> Sequence[BitmapChanges | str]:
        """From start() on, of each disk: what has changed since the parent, or why nobody tells; or nothing at all."""
        ...

    async def start(self, held: Callable[[], AbstractAsyncContextManager[None]] = ...) -> Sequence[BlockDevice]:
        """Freeze all, while ``held`` holds the guest still; the disks as they were then (PybackupError)."""
        ...

    async def watch(self) -> PybackupError:
        """Return when what is read is not the instant any more, or must not be read further: why."""
        ...

    async def check(self) -> None:
        """All that was read is of the instant (SourceError)."""
        ...

    async def let_go(self) -> list[str]:
        """Everything was read; the names of what the machine would not give up. A second time nothing happens."""
        ...

    async def keep_bitmaps(self) -> list[str]:
        """The archive is durable: from now on what changes since is recorded; what is worth telling."""
        ...

    async def end(self) -> list[str]:
        """As let_go(), and nothing is recorded that was not kept."""
        ...


class FrozenDisk(ReadOnlyDevice):
    """A disk as it was at the instant; implements BlockDevice.

    Fixed: name and size. Changing: ``frozen``, what it is read from, which is there from the instant on.
    """

    def __init__(self, disk: QemuDisk) -> None:
        self.name, self.size = disk.name, disk.size
        self.frozen: BlockDevice | None = None

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read what was there at the instant (OSError)."""
        assert self.frozen is not None
        return await self.frozen.pread(offset, length)

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """What was where at the instant (OSError)."""
        assert self.frozen is not None
        return await self.frozen.extents(offset, length)

    async def close(self) -> None:
        """Nothing to do: what was opened belongs to the fleecing."""


class QemuBackup(BackupJob):
    """Backs up disks of a running QEMU.

    Fixed: the fleecing. Changing: ``left``, the names of what QEMU would not give up at the end; ``told``, what is
    worth telling of its dirty bitmaps.
    """

    def __init__(
        self,
        fleecing: Freezer,
        writer: Intake,
        pool: ThreadPoolExecutor,
        *,
        ways: Mapping[str, DriveWay] | None = None,
        beside: Sequence[Drive] = (),
        about: dict[str, Any] | None = None,
        skip_unreadable: bool = False,
        before_commit: Callable[[], Awaitable[None]] | None = None,
        filesystems: Stillness | None = None,
        speed: int = 0,
        trace: Trace | None = None,
    ) -> None:
        """As for every backup; ``before_commit`` is awaited when the machine has been let go.

        ``ways``: how each drive comes into the archive, by its name, unless a dirty bitmap tells what has changed.
        ``beside``: drives that are not the machine's disks, and belong to it.
        """
        self._fleecing, self._verify = fleecing, before_commit
        self._disks = [FrozenDisk(disk) for disk in fleecing.disks]
        self._watch: asyncio.Task[None] | None = None
        self.left: list[str] = []
        self.told: list[str] = []
        known = ways or {}
        self._drives = [
            Drive(number, disk.name, disk, way=known.get(disk.name, DriveWay()))
            for number, disk in enumerate(self._disks, 1)
        ]
        super().__init__(
            [*self._drives, *beside],
            writer,
            pool,
            about=about,
            skip_unreadable=skip_unreadable,
            before_commit=self._before,
            filesystems=filesystems,
            speed=speed,
            trace=trace,
        )

    @property
    def begins_to_record(self) -> bool:
        """Whether QEMU records changes of disks from now on, of which it did not before."""
        return self._fleecing.begins_to_record

    @property
    def unrecorded(self) -> Sequence[LeftOut]:
        """The disks of which QEMU does not record what changes since, although that was wanted."""
        return self._fleecing.unrecorded

    @property
    def unplugged(self) -> Sequence[str]:
        """The names of disks that were unplugged from the machine meanwhile; they are in the archive all the same."""
        return self._fleecing.unplugged

    async def _work(self) -> None:
        try:
            await super()._work()
        finally:
            await uninterrupted(self._end())

    async def _freeze(self) -> None:
        held = contextlib.nullcontext if self._filesystems is None else self._filesystems.held
        opened = await uninterrupted(self._fleecing.start(held))
        for disk, device in zip(self._disks, opened, strict=True):
            disk.frozen = device
        for drive, changes in zip(self._drives, self._fleecing.changes, strict=False):
            self._hint(drive, changes)
        self._watch = asyncio.create_task(self._fail_when_broken())
        await super()._freeze()

    @staticmethod
    def _hint(drive: Drive, changes: BitmapChanges | str) -> None:
        """``changes``: what a dirty bitmap tells, or why none does."""
        if isinstance(changes, BitmapChanges):
            drive.changes = changes
        elif changes and drive.way.way == BY_DIGEST:
            drive.way = DriveWay(BY_DIGEST, changes)

    async def _fail_when_broken(self) -> None:
        self.fail(await self._fleecing.watch())

    async def _before(self) -> None:
        """Everything was read: make sure of it, and let the machine go before the archive is read back."""
        await self._fleecing.check()
        await uninterrupted(self._let_go())
        if self._verify is not None:
            await self._verify()

    async def _let_go(self) -> None:
        if self._watch is not None:
            await end([self._watch])
        self.left += await self._fleecing.let_go()

    async def _end(self) -> None:
        await self._let_go()
        if self.is_decided:
            self.told += await self._fleecing.keep_bitmaps()
        self.left += await self._fleecing.end()

    async def _abandon(self) -> None:
        await super()._abandon()
        await self._fleecing.end()
