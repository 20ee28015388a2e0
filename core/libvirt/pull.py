"""Freezes the disks of a running domain: a backup job of libvirt's in pull mode, whose NBD server we read.

libvirt has QEMU save what the guest overwrites into scratch images of ours, from one instant on for all disks, and
serve the disks as they were then at a socket of ours. See https://libvirt.org/kbase/incrementalbackupinternals.html.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from pybackup.core.errors import Advice, BusyError, PybackupError, SourceError, TargetError
from pybackup.core.nbd.client import NbdDevice
from pybackup.core.nbd.dirty_bitmap import SMALLEST_GRANULARITY, NbdDirtyBitmap
from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.core.qemu.changes import BitmapChanges
from pybackup.core.qemu.disks import LeftOut, QemuDisk
from pybackup.core.qemu.fleecing import RESERVE, WATCH_SECONDS, FleecingOptions
from pybackup.core.qemu.names import disk_name, new_run
from pybackup.core.qemu.reply_room import data_at_once
from pybackup.core.system.watchdog import Watchdog
from pybackup.core.tasks import first_of
from pybackup.core.trace import Trace
from pybackup.formats.libvirt_xml import PulledDisk, pull_backup

from .checkpoints import Checkpoints
from .domain import Domain
from .guardian import (
    ACT_SECONDS,
    BEGINNING,
    BEGUN,
    CHECKPOINT,
    CONNECTION,
    FOLDER,
    KEPT,
    DeadRun,
    end_dead_run,
    wake_run,
)
from .pulled_job import LOOK_SECONDS, current_job, end_job
from .run_folder import RunFolder
from .virsh import NoAnswerError, Virsh, VirshError

SECTOR = 512
"""QEMU rounds an export's size up to this many bytes."""
JOB_SECONDS = 2.0
"""How often libvirt is asked whether the job is there: where it is not, reading fails as well."""
RESTART_SECONDS = 60.0
"""How long libvirt may fail to tell of the job, which goes on."""
BEGIN_SECONDS = 120.0
_BUSY = (
    "cannot acquire state change lock",
    "already active",
    "another job",
    "active block job",
    "has a blockjob",
    "in use",
)


@dataclass(frozen=True, slots=True)
class Pulled:
    """What is to be frozen: disks of a domain, whose ``name`` is the archive's, and ``node`` libvirt's."""

    domain: Domain
    disks: Sequence[QemuDisk]


class PulledDisks:
    """The frozen disks of one run.

    Fixed: the domain, its disks, the options. Changing: what was started.
    """

    def __init__(
        self,
        virsh: Virsh,
        pulled: Pulled,
        options: FleecingOptions,
        trace: Trace,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.disks = pulled.disks
        self._domain = pulled.domain
        self._virsh, self._trace = virsh, trace
        self._checkpoints = checkpoints
        self._asked: list[NbdDirtyBitmap] = []
        self._run = new_run()
        self._folder = RunFolder(options, self._run)
        self._watchdog: Watchdog | None = None
        self._may_have_begun = self._is_stuck = False
        self._opened: list[NbdDevice] = []
        self.changes: list[BitmapChanges | str] = []

    @property
    def begins_to_record(self) -> bool:
        """Whether there is the first checkpoint of ours."""
        return self._checkpoints is not None and self._checkpoints.begins

    @property
    def unrecorded(self) -> Sequence[LeftOut]:
        """The disks whose changes nobody records from now on, although that was wanted, each with the reason."""
        found = {} if self._checkpoints is None else self._checkpoints.unrecorded
        return [LeftOut(name, why) for name, why in found.items()]

    @property
    def unplugged(self) -> Sequence[str]:
        """None: libvirt lets no disk go while it is backed up."""
        return ()

    # -- the course of events --

    async def start(
        self, held: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext
    ) -> Sequence[NbdDevice]:
        """Freeze all disks; the devices that read as they were at that instant.

        ``held`` is what holds the guest still at the instant, for which everything is ready then.
        Raises SourceError, BusyError, TargetError, RequestError.
        """
        await self._watch_over()
        self._tell_guardian(FOLDER, [self._folder.make(self._domain.now.owner)])
        self._trace("libvirt.folder", domain=self._domain.name)
        self._folder.check_room()
        if self._checkpoints is not None and self._checkpoints.recorded:
            self._tell_guardian(f"{CHECKPOINT}{self._checkpoints.name}")
        async with held():
            await self._begin()
        self._tell_guardian(BEGUN)
        self._trace("libvirt.begin", domain=self._domain.name, drives=len(self.disks))
        for number, disk in enumerate(self.disks):
            device = await self._open(number, disk)
            self._opened.append(device)
            self._trace("libvirt.open", drive=disk.name)
            if device.size != -(-disk.size // SECTOR) * SECTOR:
                raise SourceError(f"disk {disk.name} of domain {self._domain.name} was resized just now")
            if self._checkpoints is not None:
                self.changes.append(await self._open_bitmap(number, disk, self._checkpoints))
        return self._opened

    async def _watch_over(self) -> None:
        """From now on nothing stays behind, even if we are killed (PybackupError)."""
        told = DeadRun(self._virsh.uri, self._domain.uuid, self._folder.path, os.getpid(), RESERVE)
        try:
            self._watchdog = Watchdog(end_dead_run, seconds=ACT_SECONDS, look=wake_run)
            await self._watchdog.ready()
            self._watchdog.hand_over(str(told))
        except OSError as error:
            raise PybackupError(
                "cannot start the process that ends the backup job of the domain if this one is killed:"
                f" {error.strerror or error}"
            ) from error

    def _tell_guardian(self, text: str, descriptors: Sequence[int] = ()) -> None:
        """Tell it (PybackupError where it is not there any more: then somebody wants us to end)."""
        assert self._watchdog is not None
        try:
            self._watchdog.hand_over(text, descriptors)
        except OSError as error:
            raise PybackupError("the process that watches over this backup was killed") from error

    async def _begin(self) -> None:
        """With what checkpoints are for, if libvirt does it; without them there is a backup all the same."""
        self._tell_guardian(BEGINNING)
        self._may_have_begun = True
        while True:
            try:
                await self._ask_to_begin()
                break
            except VirshError as error:
                explained = self._explained(error)
                without = error is explained and not isinstance(error, NoAnswerError) and self._checkpoints is not None
                if self._checkpoints is None or not without or not self._checkpoints.give_up(error.reason):
                    raise explained from error
        if self._checkpoints is not None:
            self._checkpoints.made()

    async def _ask_to_begin(self) -> None:
        since = {} if self._checkpoints is None else self._checkpoints.since
        disks = [
            PulledDisk(disk.node, self._export(number), self._folder.scratch(number), since.get(disk.node, ""))
            for number, disk in enumerate(self.disks)
        ]
        await self._virsh.ask(
            f"begin a backup of domain {self._domain.name}",
            "backup-begin",
            "--domain",
            self._domain.uuid,
            "/dev/stdin",
            *self._checkpoint_file(),
            given=pull_backup(self._folder.socket, disks, self._others),
            seconds=BEGIN_SECONDS,
        )

    @property
    def _others(self) -> list[str]:
        """The targets of the domain's disks that are not backed up."""
        chosen = {disk.node for disk in self.disks}
        return [disk.target for disk in self._domain.now.disks if disk.target not in chosen]

    def _checkpoint_file(self) -> list[str]:
        """The file with the checkpoint to make at the instant, where there is one (TargetError)."""
        targets = [disk.target for disk in self._domain.now.disks]
        xml = None if self._checkpoints is None else self._checkpoints.xml(self._folder.path, targets)
        if xml is None:
            return []
        return [self._folder.write_request(xml)]

    def _explained(self, error: VirshError) -> PybackupError:
        if any(one in error.reason for one in _BUSY):
            return BusyError(f"domain {self._domain.name} is busy: {error.reason}")
        if "ermission denied" in error.reason:
            return SourceError(
                f"{error}; QEMU must be able to use {self._folder.parent} (see pybackup-libvirt(7) for AppArmor"
                " and SELinux)",
                advice=Advice.FLEECE_ELSEWHERE,
            )
        return error

    def _export(self, number: int) -> str:
        return disk_name(self._run, number, shared=False)

    async def _open(self, number: int, disk: QemuDisk) -> NbdDevice:
        """Each connection with room for what is asked over it, so that QEMU never waits for us: see core/qemu."""
        return await NbdDevice.connect(
            NbdAddress(self._export(number), socket=self._folder.socket),
            name=f"disk {disk.name} of domain {self._domain.name}",
            prepare=self._keep,
            data_at_once=data_at_once(),
        )

    async def _open_bitmap(self, number: int, disk: QemuDisk, checkpoints: Checkpoints) -> BitmapChanges | str:
        """What tells the disk's changes, over a connection of its own; or why nothing does."""
        if disk.node not in checkpoints.since:
            return checkpoints.why.get(disk.node, "")
        bitmap = await NbdDirtyBitmap.connect(
            NbdAddress(self._export(number), socket=self._folder.socket),
            self._export(number),
            granularity=SMALLEST_GRANULARITY,
            prepare=self._keep,
            data_at_once=data_at_once(),
        )
        if bitmap is None:
            return "libvirt does not offer its record of changes"
        self._asked.append(bitmap)
        return BitmapChanges(bitmap)

    async def _keep(self, sock: socket.socket) -> None:
        """The guardian keeps the connection open where we are killed, until the job has ended.

        Several QEMUs, such as 7.2 of Debian 12, end themselves by a failed assertion (nbd_blockdev_client_closed) when
        a client leaves an export of a disk that has an I/O thread.
        """
        self._tell_guardian(CONNECTION, [sock.fileno()])

    # -- while it runs --

    async def watch(self) -> PybackupError:
        """Return when what is read is not the instant any more, or must not be read further: why."""
        return await first_of([self._watch_room(), self._watch_job()])

    async def _watch_room(self) -> PybackupError:
        while True:
            try:
                self._folder.check_room()
            except TargetError as error:
                return error
            await asyncio.sleep(WATCH_SECONDS)

    async def _watch_job(self) -> PybackupError:
        while True:
            await asyncio.sleep(JOB_SECONDS)
            try:
                await self.check()
            except PybackupError as error:
                return error

    async def check(self) -> None:
        """All that was read is of the instant: the job has lived until now (SourceError).

        libvirt's daemon may be started anew meanwhile, as by an upgrade: the job, which is QEMU's, lives on.
        """
        until = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                job = await current_job(self._virsh, self._domain.uuid)
                break
            except VirshError:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(LOOK_SECONDS)
        if job is None or job.socket != self._folder.socket:
            raise SourceError(
                f"the backup job of domain {self._domain.name} has ended: somebody has ended it, or the domain"
            )

    # -- the end --

    async def let_go(self) -> list[str]:
        """Everything was read: end the job; the names of what would not go. A second time nothing happens."""
        left: list[str] = []
        if self._may_have_begun:
            self._may_have_begun = False
            if not await self._end_job():
                left.append(f"the backup job of domain {self._domain.name}")
                self._is_stuck = True
        # Not a word to an NBD server that was not stopped: see _keep().
        for bitmap in self._asked:
            await bitmap.abort()
        for device in self._opened:
            await device.abort()
        self._opened, self._asked = [], []
        self._folder.remove_scratch()
        return left

    async def keep_bitmaps(self) -> list[str]:
        """The archive is durable: from now on libvirt records what changes since; what is worth telling."""
        if self._checkpoints is None:
            return []
        try:
            told = await self._checkpoints.keep()
        except SourceError as error:
            return [f"no changes are recorded for the next backup: {error}"]
        with contextlib.suppress(PybackupError):
            self._tell_guardian(KEPT)
        self._trace("libvirt.keep")
        return told

    async def end(self) -> list[str]:
        """Take everything away again; the names of what would not go. A second time nothing happens."""
        left = await self.let_go()
        if self._checkpoints is not None:
            await self._checkpoints.drop()
        if self._folder.remove():
            self._trace("libvirt.end")
        if self._watchdog is not None:
            watchdog, self._watchdog = self._watchdog, None
            if self._is_stuck:
                watchdog.leave()
            else:
                await watchdog.dismiss()
        return left

    async def _end_job(self) -> bool:
        try:
            return await end_job(self._virsh, self._domain.uuid, self._folder.socket)
        except SourceError:
            return False  # libvirt does not answer: the guardian goes on asking
