"""The backup of a domain of libvirt: its disks, running or switched off, and what belongs to it beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.endpoints.drive_names import origin_of
from pybackup.core.endpoints.sources import OpenSource, SourceOptions, open_source
from pybackup.core.errors import BusyError, SourceError
from pybackup.core.guest.consistency import CRASH
from pybackup.core.jobs.backup import BackupJob
from pybackup.core.jobs.changes import BY_DIGEST, DriveWay
from pybackup.core.jobs.copying import Drive
from pybackup.core.libvirt.checkpoints import ArchiveInstant, Checkpoints, KnownCheckpoints, RecordRequest, look
from pybackup.core.libvirt.domain import Domain, disk_size, find_domain, has_qemu
from pybackup.core.libvirt.freeze import DomainFreeze, FreezeOptions, Wish
from pybackup.core.libvirt.machine import NVRAM, Belongings, belongings
from pybackup.core.libvirt.pull import Pulled, PulledDisks
from pybackup.core.libvirt.pulled_job import clear_way
from pybackup.core.libvirt.resting import RestingChanges
from pybackup.core.libvirt.virsh import Virsh
from pybackup.core.places.kinds import LibvirtDomain, LocalPath, SourcePlace
from pybackup.core.qemu.backup import QemuBackup
from pybackup.core.qemu.disks import QemuDisk
from pybackup.core.qemu.fleecing import FleecingOptions
from pybackup.formats.libvirt_xml import DomainDisk, LeftOut

from .course import Parts
from .listener import Listener
from .machine import unread_in
from .parent import Choice


@dataclass(frozen=True, slots=True)
class DomainOptions:
    """How to get at a domain's disks.

    ``uri`` of libvirt; None: what virsh chooses. ``chosen``: the disks wanted, all if there are none. ``at_rest``: how
    the disks of one that is switched off are opened. ``records``: look for checkpoints, and leave one for the next.
    """

    fleecing: FleecingOptions
    at_rest: SourceOptions
    uri: str | None = None
    chosen: Sequence[str] = ()
    records: bool = False
    freeze: FreezeOptions = field(default_factory=FreezeOptions)


class DomainsDisks:
    """A Way: the disks of a domain of libvirt.

    Fixed: what was asked. Changing: the domain, once it was found; its disks, once they were opened; the job.
    """

    def __init__(self, place: LibvirtDomain, options: DomainOptions) -> None:
        self._place, self._options = place, options
        self._listener = Listener()
        self._virsh: Virsh | None = None
        self._domain: Domain | None = None
        self._disks: list[DomainDisk] = []
        self._belongings = Belongings()
        self._frozen: list[QemuDisk] = []
        self._at_rest: list[OpenSource] = []
        self._known: KnownCheckpoints | None = None
        self._changes: list[RestingChanges] = []
        self._job: BackupJob | None = None

    @property
    def paths(self) -> Sequence[SourcePlace]:
        """The files and devices that the disks are."""
        return [LocalPath(disk.source) for disk in self._disks if disk.kind in ("file", "block")]

    @property
    def domain_name(self) -> str | None:
        """The domain's name, once it was found."""
        return None if self._domain is None else self._domain.name

    @property
    def left_out(self) -> Sequence[LeftOut]:
        """What is not backed up, each with the reason."""
        if self._domain is None:
            return ()
        return [*self._domain.now.left_out, *self._belongings.missing]

    @property
    def unplugged(self) -> Sequence[str]:
        """None: libvirt lets no disk go while it is backed up."""
        return ()

    @property
    def begins_to_record(self) -> bool:
        """Whether libvirt records changes of disks for the next backup, of which it did not before."""
        return isinstance(self._job, QemuBackup) and self._job.begins_to_record

    @property
    def unrecorded(self) -> Sequence[LeftOut]:
        """The disks whose changes nobody records for the next backup, although that was wanted."""
        found = self._job.unrecorded if isinstance(self._job, QemuBackup) else ()
        return [LeftOut(name, reason) for name, reason in found]

    @property
    def told(self) -> Sequence[str]:
        """What is worth telling of checkpoints at the end, in sentences."""
        return self._job.told if isinstance(self._job, QemuBackup) else ()

    @property
    def stays_behind(self) -> Sequence[str]:
        """The names of what libvirt would not give up at the end."""
        return self._job.left if isinstance(self._job, QemuBackup) else ()

    # -- before the instant --

    async def find(self, stack: AsyncExitStack, listener: Listener) -> Sequence[str]:
        """Look for the domain, and its disks (SourceError, BusyError, RequestError)."""
        self._listener = listener
        virsh = self._virsh = await Virsh.connect(self._options.uri)
        domain = self._domain = await find_domain(virsh, self._place.domain)
        self._disks = domain.chosen(tuple(self._options.chosen))
        if domain.is_active:
            await clear_way(virsh, domain.uuid, domain.name)
        self._belongings = await asyncio.to_thread(belongings, domain, virsh.uri)
        self._tell(domain)
        names = [disk.target for disk in self._disks]
        return names if self._belongings.nvram is None else [*names, NVRAM]

    def origins(self) -> dict[str, str]:
        """By the domain's uuid, and the names of the disks in it."""
        assert self._domain is not None
        place = LibvirtDomain(str(self._domain.uuid))
        names = [*(disk.target for disk in self._disks), *(() if self._belongings.nvram is None else (NVRAM,))]
        return {name: origin_of(name, place, name) for name in names}

    def _tell(self, domain: Domain) -> None:
        notes = [f"{name} is not backed up: {reason}" for name, reason in domain.now.left_out]
        if domain.has_saved_memory:
            notes.append(f"domain {domain.name} was put to sleep: its memory is not backed up")
        encrypted = [disk.target for disk in self._disks if disk.is_encrypted and domain.is_active]
        notes += [f"disk {target} is encrypted, and is not so in the archive" for target in encrypted]
        self._listener.tell([f"{name} is not backed up: {why}" for name, why in self._belongings.missing], notes)

    async def open(self, stack: AsyncExitStack, listener: Listener) -> Sequence[tuple[str, int]]:
        """Ask for the sizes; a domain that is switched off has its disks opened, and locked (PybackupError)."""
        assert self._domain is not None and self._virsh is not None
        if self._domain.is_active:
            for disk in self._disks:
                size = await disk_size(self._virsh, self._domain, disk.target)
                self._frozen.append(QemuDisk(disk.target, disk.target, size))
            sizes = [one.size for one in self._frozen]
        else:
            for disk in self._disks:
                self._at_rest.append(await self._open(disk, stack))
            await self._check_off()
            sizes = [one.device.size for one in self._at_rest]
        if self._options.records:
            self._known = await look(self._virsh, self._domain)
            stack.push_async_callback(self._close_changes)
        drives = [(disk.target, size) for disk, size in zip(self._disks, sizes, strict=True)]
        return [*drives, *((one.name, one.device.size) for one in self._beside(len(drives)))]

    async def _close_changes(self) -> None:
        for one in self._changes:
            await one.close()

    async def _open(self, disk: DomainDisk, stack: AsyncExitStack) -> OpenSource:
        """A disk that nobody uses, under a lock (PybackupError)."""
        assert self._domain is not None
        options = self._options.at_rest
        asked = SourceOptions(
            disk.image_format, options.force_share, options.allow_changing, options.snapshot, options.skip_unreadable
        )
        try:
            one = await open_source(LocalPath(await self._path_of(disk)), asked)
        except BusyError as error:
            error.advice = None
            raise BusyError(
                f"{error}: domain {self._domain.name} was switched off a moment ago, and has begun, or another uses it"
            ) from error
        stack.push_async_callback(one.close)
        self._listener.tell(one.warnings, one.notes)
        return one

    async def _path_of(self, disk: DomainDisk) -> str:
        assert self._domain is not None and self._virsh is not None
        if disk.kind in ("file", "block"):
            return disk.source
        doing = f"look for disk {disk.target} of domain {self._domain.name}"
        if disk.kind == "volume":
            path = (await self._virsh.ask(doing, "vol-path", "--pool", disk.pool, "--vol", disk.volume)).strip()
            if path.startswith("/"):
                return path
        raise SourceError(
            f"disk {disk.target} of domain {self._domain.name} is no file or device of this machine ({disk.kind}), and"
            " can be read only while the domain runs"
        )

    async def _check_off(self) -> None:
        """Locked, no QEMU can begin to write; one that had begun before is found here (BusyError)."""
        assert self._domain is not None and self._virsh is not None
        if await has_qemu(self._virsh, self._domain.uuid):
            raise BusyError(f"domain {self._domain.name} was switched on just now")

    def _beside(self, drives: int, choice: Choice | None = None) -> Sequence[Drive]:
        """What follows so many disks."""
        content = self._belongings.nvram
        if content is None:
            return []
        way = DriveWay() if choice is None else choice.way_of(NVRAM)
        return [Drive(drives + 1, NVRAM, MemoryDevice(content, NVRAM, read_only=True), way=way)]

    def configs(self, given: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        """Those given, and those of the machine, unless one of the same name was given."""
        names = {name for name, _ in given}
        return [*given, *(one for one in self._belongings.configs if one[0] not in names)]

    # -- the job --

    def job(self, parts: Parts) -> BackupJob:
        """What freezes the disks, or has them locked, and reads them (SourceError)."""
        assert self._domain is not None
        self._job = self._running_job(parts) if self._domain.is_active else self._resting_job(parts)
        return self._job

    def _running_job(self, parts: Parts) -> QemuBackup:
        assert self._domain is not None and self._virsh is not None
        pulled = Pulled(self._domain, self._frozen)
        return QemuBackup(
            PulledDisks(self._virsh, pulled, self._options.fleecing, parts.trace, self._checkpoints(parts)),
            parts.writer,
            parts.scanners,
            ways={disk.name: parts.choice.way_of(disk.name) for disk in self._frozen},
            beside=self._beside(len(self._frozen), parts.choice),
            about=self._about(parts, ["libvirt"] * len(self._frozen)) | CRASH,
            filesystems=self._freeze(),
            skip_unreadable=parts.request.skip_unreadable,
            before_commit=parts.before_commit,
            speed=parts.request.speed,
            trace=parts.trace,
        )

    def _freeze(self) -> DomainFreeze | None:
        """What freezes the filesystems; None where nobody listens in the guest, or nobody wants it (SourceError)."""
        assert self._domain is not None and self._virsh is not None
        wish, now = self._options.freeze.wish, self._domain.now
        if wish is Wish.AUTO and not now.is_agent_connected:
            why = "no agent answers in it" if now.has_agent else "it has no channel for a guest agent"
            self._listener.note(f"the filesystems of domain {self._domain.name} are not frozen: {why}")
            return None
        if wish is Wish.NEVER:
            return None
        return DomainFreeze(self._virsh, self._domain, self._options.freeze, self._listener.warn)

    def _resting_job(self, parts: Parts) -> BackupJob:
        checkpoints = self._checkpoints(parts)
        drives = [
            self._resting_drive(number, disk, one, parts.choice.way_of(disk.target), checkpoints)
            for number, (disk, one) in enumerate(zip(self._disks, self._at_rest, strict=True), 1)
        ]
        return BackupJob(
            [*drives, *self._beside(len(drives), parts.choice)],
            parts.writer,
            parts.scanners,
            about=self._about(parts, [one.kind for one in self._at_rest]),
            skip_unreadable=parts.request.skip_unreadable,
            before_commit=parts.before_commit,
            speed=parts.request.speed,
            trace=parts.trace,
        )

    def _resting_drive(
        self, number: int, disk: DomainDisk, one: OpenSource, way: DriveWay, checkpoints: Checkpoints | None
    ) -> Drive:
        drive = Drive(number, disk.target, one.device, one.check, one.allocated, way=way)
        if checkpoints is None or way.way != BY_DIGEST:
            return drive
        bitmap = checkpoints.bitmap(disk.target)
        if bitmap is None:
            drive.way = DriveWay(BY_DIGEST, checkpoints.why.get(disk.target))
        else:
            drive.changes = RestingChanges(one.device.name, bitmap)
            self._changes.append(drive.changes)
        return drive

    def _checkpoints(self, parts: Parts) -> Checkpoints | None:
        """Those of this run; None where the archive is to be nobody's delta, lest one stays unasked for."""
        if self._known is None:
            return None
        assert self._domain is not None and self._virsh is not None
        opened = [one.device.size for one in self._at_rest] or [one.size for one in self._frozen]
        sizes = {disk.target: size for disk, size in zip(self._disks, opened, strict=True)}
        checkpoints = Checkpoints(self._virsh, self._domain, _record_request(parts), self._known)
        checkpoints.judge(self._disks, sizes)
        return checkpoints

    def _about(self, parts: Parts, kinds: Sequence[str]) -> dict[str, Any]:
        assert self._domain is not None
        return {
            "tool": parts.request.tool,
            "created": parts.request.options.created,
            "sources": [{"name": disk.target, "kind": kind} for disk, kind in zip(self._disks, kinds, strict=True)],
            "domain": {"name": self._domain.name, "uuid": self._domain.uuid},
        }


def _record_request(parts: Parts) -> RecordRequest:
    options, choice, wish = parts.request.options, parts.choice, parts.request.parent
    archive = ArchiveInstant(options.uuid, options.created)
    if choice.parent is None:
        return RecordRequest(archive, superseded=choice.superseded)
    identities = [link.identity for link in choice.parent.chain.links]
    return RecordRequest(
        archive,
        [ArchiveInstant(identity.uuid, identity.created) for identity in identities],
        {drive.name: drive.size for drive in choice.parent.identity.drives},
        frozenset(name for identity in identities for name in unread_in(identity)),
        keeps_parent=wish is not None and wish.base is not None,
        superseded=choice.superseded,
    )
