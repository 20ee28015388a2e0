"""Fleecing: QEMU itself freezes its disks and saves what guests overwrite, and we read the frozen disks over NBD.

For each disk a temporary image is added whose backing file is the disk. Backup jobs of kind sync=none, all begun by one
transaction, put the old data of every write into it: so the image reads as the disk did at that instant. QEMU's NBD
server offers the images. See docs/interop/live-block-operations.rst of QEMU, "Notes on image fleecing".
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from pybackup.core.errors import Advice, BusyError, PybackupError, SourceError, TargetError
from pybackup.core.nbd.client import NbdDevice
from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.core.system.watchdog import Watchdog
from pybackup.core.tasks import first_of
from pybackup.core.trace import Trace

from .bitmaps import BitmapRequest, DirtyBitmaps
from .changes import BitmapChanges, open_changes
from .disks import LeftOut, QemuDisk
from .guardian import ACT_SECONDS, hand_over_run, remove_dead_run, wake_run
from .handover import Handover, folder_of
from .leftovers import RunMark, keep_connection, remove_run
from .migration import wait_for_migration
from .monitor import Monitor, MonitorLostError, RefusedError
from .names import disk_name
from .reply_room import data_at_once
from .unplugging import Unplugging

RESERVE = 256 << 20
"""Bytes that stay free beside the temporary images: most QEMUs fail a guest's write when they cannot save old data."""
WATCH_SECONDS = 0.1
"""A guest would have to write RESERVE within this time to fill the disk before the backup ends itself."""
POLL_SECONDS = 0.01
UNPLUG_SECONDS = 1.0
"""How long a device that goes may take from the end of its disk's job on."""
_JOB_EVENTS = ("BLOCK_JOB_ERROR", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


@dataclass(frozen=True, slots=True)
class FleecingOptions:
    """The folder of the temporary images, the most bytes that they may take, and a socket.

    On the socket QEMU's NBD server listens already, for somebody else; None where it has to be started.
    """

    folder: str
    max_size: int | None = None
    nbd_socket: str | None = None


class Fleecing:
    """The frozen disks of one run.

    Fixed: monitor, disks, the run's mark, the options. Changing: what was started; and ``changes``, from start() on:
    what each disk's dirty bitmap tells, or why none does, and empty where nobody asked.
    """

    def __init__(
        self,
        monitor: Monitor,
        disks: Sequence[QemuDisk],
        options: FleecingOptions,
        trace: Trace,
        bitmaps: BitmapRequest | None = None,
    ) -> None:
        self.disks = disks
        self._monitor, self._options, self._trace = monitor, options, trace
        self._mark = RunMark()
        self._watchdog: Watchdog | None = None
        self._handover: Handover | None = None
        self._kept = 0
        self._serves = False
        self._unplugging = Unplugging(disks)
        self._opened: list[NbdDevice] = []
        self._bitmaps = None if bitmaps is None else DirtyBitmaps(monitor, bitmaps)
        self.changes: list[BitmapChanges | str] = []

    def _name(self, number: int) -> str:
        return disk_name(self._mark.run, number, shared=self._options.nbd_socket is not None)

    # -- the course of events --

    async def start(
        self, held: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext
    ) -> Sequence[NbdDevice]:
        """Freeze all disks; the devices that read as they were at that instant.

        ``held`` is what holds the guest still at the instant, for which everything is ready then.
        Raises SourceError, BusyError, TargetError.
        """
        await self._watch_over()
        handover = self._handover = Handover(self._monitor, self._options.folder, self._mark.run)
        self._check_room(handover)
        for number, disk in enumerate(self.disks):
            await self._add_image(handover, number, disk)
        if self._options.nbd_socket is None:
            await self._serve(handover)
        if self._bitmaps is not None:
            await self._look_at(self._bitmaps)
        await self._freeze(held)
        for number, disk in enumerate(self.disks):
            await self._export(number)
            self._opened.append(await self._open(handover, number, disk))
            if self._bitmaps is not None:
                self.changes.append(await self._open_bitmap(handover, number, self._bitmaps))
        handover.remove_folder()
        for disk, device in zip(self.disks, self._opened, strict=True):
            if device.size != disk.size:
                raise SourceError(f"disk {disk.name} of {self._monitor.path} was resized just now")
        return self._opened

    async def _watch_over(self) -> None:
        """From now on nothing stays behind in QEMU, even if we are killed (PybackupError)."""
        shared = self._options.nbd_socket is not None
        folder = folder_of(self._options.folder, self._mark.run)
        try:
            self._watchdog = Watchdog(remove_dead_run, seconds=ACT_SECONDS, look=wake_run)
            await self._watchdog.ready()
            hand_over_run(self._watchdog, self._monitor, self._mark, folder, shared=shared, reserve=RESERVE)
        except OSError as error:
            raise PybackupError(
                "cannot start the process that takes the backup out of QEMU if this one is killed:"
                f" {error.strerror or error}"
            ) from error

    async def _add_image(self, handover: Handover, number: int, disk: QemuDisk) -> None:
        name = self._name(number)
        filename = await handover.image(name)
        file = {"driver": "file", "node-name": f"{name}-file", "filename": filename}
        try:
            await self._monitor.execute("blockdev-add", file)
        except RefusedError as error:
            raise TargetError(
                f"{error}; QEMU must be able to use temporary images in {handover.parent}",
                advice=Advice.FLEECE_ELSEWHERE,
            ) from None
        handover.drop_name(filename)
        await self._format(f"{name}-create", {"driver": "qcow2", "file": f"{name}-file", "size": disk.size})
        image = {"driver": "qcow2", "node-name": name, "file": f"{name}-file", "backing": disk.node}
        await self._monitor.execute("blockdev-add", image)
        self._trace("qemu.image", drive=disk.name, node=name)

    async def _format(self, job: str, options: dict[str, Any]) -> None:
        await self._monitor.execute("blockdev-create", {"job-id": job, "options": options})
        while (state := (await self._jobs())[job])["status"] != "concluded":  # noqa: ASYNC110 - in QEMU
            await asyncio.sleep(POLL_SECONDS)
        await self._monitor.execute("job-dismiss", {"id": job})
        if "error" in state:
            raise TargetError(f"QEMU cannot write a temporary image in {self._options.folder}: {state['error']}")

    async def _serve(self, handover: Handover) -> None:
        address = await handover.listen()
        self._serves = True
        try:
            await self._monitor.execute("nbd-server-start", {"addr": address})
        except RefusedError as error:
            self._serves = False
            if "already" in error.reason:
                raise BusyError(
                    f"QEMU at {self._monitor.path} runs its NBD server for somebody else, and has only one",
                    advice=Advice.SHARE_NBD_SERVER,
                ) from None
            raise
        self._trace("qemu.serve")

    async def _freeze(self, held: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        """All disks in one transaction, so that they share one instant."""
        actions = [self._freeze_action(self._name(number), disk) for number, disk in enumerate(self.disks)]
        try:
            async with held():
                await self._transact(actions)
        except RefusedError as error:
            if "busy" in error.reason or "in use" in error.reason:
                raise BusyError(f"a disk of QEMU at {self._monitor.path} is in use: {error.reason}") from None
            raise
        self._trace("qemu.freeze", drives=len(self.disks))

    async def _transact(self, actions: list[dict[str, Any]]) -> None:
        """With what the dirty bitmaps need, if QEMU does it; without them there is a backup all the same.

        That comes behind the backups, each of which keeps guests from writing until the transaction ends: a write
        between a bitmap's copy and the instant would be in neither.
        """
        if self._bitmaps is not None and await self._transact_with(self._bitmaps, actions):
            return
        await self._monitor.execute("transaction", {"actions": actions})

    async def _transact_with(self, bitmaps: DirtyBitmaps, actions: list[dict[str, Any]]) -> bool:
        """Whether it was done; somebody may have changed the bitmaps since we looked, so we look again."""
        reason = ""
        for _ in range(2):
            try:
                await self._monitor.execute("transaction", {"actions": [*actions, *bitmaps.actions()]})
                return True
            except RefusedError as error:
                reason = error.reason
                await self._look_at(bitmaps)
        bitmaps.give_up(reason)
        return False

    async def _look_at(self, bitmaps: DirtyBitmaps) -> None:
        await bitmaps.look(self.disks, [self._name(number) for number in range(len(self.disks))])

    def _freeze_action(self, name: str, disk: QemuDisk) -> dict[str, Any]:
        backup = {
            "job-id": name,
            "device": disk.node,
            "target": name,
            "sync": "none",
            "filter-node-name": f"{name}-cbw",
        }
        if self._monitor.knows("blockdev-backup", "on-cbw-error"):
            # Where old data cannot be saved the backup fails, and not the guest's write.
            backup["on-cbw-error"] = "break-snapshot"
        return {"type": "blockdev-backup", "data": backup}

    async def _open(self, handover: Handover, number: int, disk: QemuDisk) -> NbdDevice:
        """Few connections, for QEMU serves all of them in one thread; each with room for what is asked over it.

        So QEMU never waits for us, not even when we are killed or suspended. Such waiting would be without end: in the
        middle of an answer it can neither delete the export nor quit.
        """
        return await NbdDevice.connect(
            NbdAddress(self._name(number), socket=self._options.nbd_socket or handover.socket),
            name=f"disk {disk.name} of {self._monitor.path}",
            prepare=self._keep,
            data_at_once=data_at_once(),
        )

    async def _open_bitmap(self, handover: Handover, number: int, bitmaps: DirtyBitmaps) -> BitmapChanges | str:
        """What tells the disk's changes, over a connection of its own; or why nothing does."""
        if (changed := bitmaps.changed(number)) is None:
            return bitmaps.why(number)
        address = NbdAddress(self._name(number), socket=self._options.nbd_socket or handover.socket)
        return await open_changes(address, changed, self._keep, data_at_once())

    async def _keep(self, sock: socket.socket) -> None:
        await keep_connection(self._monitor, self._mark.run, self._kept, sock)
        self._kept += 1

    async def _export(self, number: int) -> None:
        name = self._name(number)
        export: dict[str, Any] = {"type": "nbd", "id": name, "node-name": name, "name": name, "writable": False}
        changed = None if self._bitmaps is None else self._bitmaps.changed(number)
        try:
            # By its name alone, as it was until 7.1: no other bitmap below the image has it.
            await self._monitor.execute("block-export-add", export | ({"bitmaps": [changed]} if changed else {}))
        except RefusedError as error:
            if self._bitmaps is None or not changed:
                raise
            self._bitmaps.distrust(number, f"QEMU does not offer its record of changes: {error.reason}")
            await self._monitor.execute("block-export-add", export)
        self._trace("qemu.export", drive=self.disks[number].name)

    # -- while it runs --

    async def watch(self) -> PybackupError:
        """Return when what is read is not the instant any more, or must not be read further: why."""
        causes = [
            self._watch_events(),
            self._watch_room(),
            self._monitor.wait_lost(),
            wait_for_migration(self._monitor),
        ]
        return await first_of(causes)

    async def _watch_events(self) -> PybackupError:
        names = {self._name(number): disk.name for number, disk in enumerate(self.disks)}
        events = self._monitor.events()
        async for event in events:
            self._unplugging.take(event)
            data = event.get("data", {})
            if event["event"] in _JOB_EVENTS and data.get("device") in names:
                name, reason = names[data["device"]], data.get("error", "")
                if not reason:
                    await self._wait_for_unplugging(name, events)
                return self._broken(name, reason)
        raise AssertionError("events have no end")

    async def _wait_for_unplugging(self, name: str, events: AsyncIterator[Mapping[str, Any]]) -> None:
        """A device that goes ends the job of its disk first, and is gone a moment later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNPLUG_SECONDS):
                while name not in self._unplugging.names:
                    self._unplugging.take(await anext(events))

    @property
    def unplugged(self) -> Sequence[str]:
        """The names of disks that were unplugged from the machine meanwhile."""
        return self._unplugging.names

    def _broken(self, drive: str, reason: str) -> SourceError:
        if drive in self.unplugged:
            return SourceError(
                f"disk {drive} was unplugged from the machine of QEMU at {self._monitor.path} while it was backed up"
            )
        return SourceError(
            f"QEMU at {self._monitor.path} has stopped to save what the guest overwrites on drive {drive}"
            + (f": {reason}" if reason else "")
        )

    async def _watch_room(self) -> PybackupError:
        while True:
            try:
                if self._handover is not None:
                    self._check_room(self._handover)
            except TargetError as error:
                return error
            await asyncio.sleep(WATCH_SECONDS)

    def _check_room(self, handover: Handover) -> None:
        most, taken = self._options.max_size, handover.allocated()
        if most is not None and taken > most:
            raise TargetError(
                f"the temporary images have grown to {taken:,} bytes of what the guest overwrote",
                advice=Advice.FLEECE_MORE,
                about=f"{most:,}",
            )
        if handover.free() < RESERVE:
            raise TargetError(
                f"only {handover.free():,} bytes are free in {handover.parent}, and {RESERVE:,} must stay free beside"
                " the temporary images, lest a guest's write fails",
                advice=Advice.FLEECE_ELSEWHERE,
            )

    async def _jobs(self) -> dict[str, dict[str, Any]]:
        return {job["id"]: job for job in await self._monitor.execute("query-jobs")}

    async def check(self) -> None:
        """All that was read is of the instant: every job has lived until now, without an error (SourceError)."""
        jobs = await self._jobs()
        for number, disk in enumerate(self.disks):
            job = jobs.get(self._name(number))
            if job is None or job["status"] not in ("running", "ready", "paused") or "error" in job:
                raise self._broken(disk.name, (job or {}).get("error", ""))

    # -- the end --

    async def let_go(self) -> list[str]:
        """Everything was read: take it out of QEMU, but for what records until the archive is durable.

        Returns the names of what would not go. A second time nothing happens.
        """
        left: list[str] = []
        if self._handover is not None:
            left = await self._remove(() if self._bitmaps is None else self._bitmaps.recordings)
            # Not a word to an NBD server that was not stopped: see keep_connection().
            for one in (*self._opened, *self.changes):
                if not isinstance(one, str):
                    await one.abort()
            self._opened = []
            self._handover.close()
            self._handover = None
            self._trace("qemu.end")
        return left

    async def keep_bitmaps(self) -> list[str]:
        """The archive is durable: from now on QEMU records what changes since, for the next; what is worth telling."""
        if self._bitmaps is None:
            return []
        told = await self._bitmaps.keep()
        self._trace("qemu.keep")
        return told

    @property
    def begins_to_record(self) -> bool:
        """Whether QEMU records changes of disks from now on, of which it did not before."""
        return self._bitmaps is not None and self._bitmaps.begins

    @property
    def unrecorded(self) -> Sequence[LeftOut]:
        """The disks of which QEMU does not record what changes since, although that was wanted."""
        return [] if self._bitmaps is None else self._bitmaps.unrecorded

    async def end(self) -> list[str]:
        """Take everything out of QEMU again; the names of what would not go. A second time nothing happens."""
        left = await self.let_go()
        if self._bitmaps is not None and self._bitmaps.recordings:
            left += await self._remove()
        if self._watchdog is not None:
            await self._watchdog.dismiss()
        self._mark.close()
        return left

    async def _remove(self, but: Sequence[str] = ()) -> list[str]:
        server, self._serves = self._serves, False
        try:
            return await remove_run(self._monitor, self._mark.run, server=server, but=but)
        except MonitorLostError:
            # Either QEMU has ended, or the next run finds what is left.
            return []
