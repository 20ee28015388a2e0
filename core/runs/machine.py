"""The backup of a running QEMU's disks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

from pybackup.core.archive.identity import ArchiveIdentity
from pybackup.core.endpoints.drive_names import origin_of
from pybackup.core.guest.consistency import CRASH
from pybackup.core.guest.filesystem_freeze import AgentOptions, FilesystemFreeze
from pybackup.core.places.kinds import RunningQemu, SourcePlace
from pybackup.core.qemu.backup import QemuBackup
from pybackup.core.qemu.bitmaps import BitmapRequest, ParentArchive
from pybackup.core.qemu.disks import LeftOut
from pybackup.core.qemu.fleecing import FleecingOptions
from pybackup.core.qemu.machine import CONFIG_NAME
from pybackup.core.qemu.running import RunningQemu as Machine

from .course import Parts
from .listener import Listener
from .parent import Parent


class MachinesDisks:
    """A Way: the disks of the machine whose monitor listens at a path.

    Fixed: what was asked. ``chosen`` are the names of the disks wanted, all if there are none; ``name`` is a new one
    for the only disk; ``agent`` says how the guest's filesystems are frozen, where they are. Changing: the machine,
    connected or not, and the job.
    """

    def __init__(
        self,
        qemu: RunningQemu,
        fleecing: FleecingOptions,
        *,
        chosen: Sequence[str] = (),
        name: str | None = None,
        agent: AgentOptions | None = None,
    ) -> None:
        self._path, self._fleecing = qemu.monitor, fleecing
        self._chosen, self._name, self._agent = chosen, name, agent
        self._listener = Listener()
        self._machine: Machine | None = None
        self._job: QemuBackup | None = None

    @property
    def paths(self) -> Sequence[SourcePlace]:
        """Nothing that an archive could replace."""
        return ()

    @property
    def left_out(self) -> Sequence[LeftOut]:
        """The disks that are not backed up, each with the reason."""
        return self._machine.left_out if self._machine is not None else ()

    @property
    def unplugged(self) -> Sequence[str]:
        """The names of disks that were unplugged meanwhile; the archive holds them as they were before."""
        return self._job.unplugged if self._job is not None else ()

    @property
    def begins_to_record(self) -> bool:
        """Whether QEMU records changes of disks for the next backup, of which it did not before."""
        return self._job is not None and self._job.begins_to_record

    @property
    def unrecorded(self) -> Sequence[LeftOut]:
        """The disks of which QEMU does not record what changes for the next backup, although that was wanted."""
        return self._job.unrecorded if self._job is not None else ()

    @property
    def told(self) -> Sequence[str]:
        """What is worth telling of dirty bitmaps at the end, in sentences."""
        return self._job.told if self._job is not None else ()

    @property
    def stays_behind(self) -> Sequence[str]:
        """The names of what QEMU would not give up at the end."""
        return self._job.left if self._job is not None else ()

    async def find(self, stack: AsyncExitStack, listener: Listener) -> Sequence[str]:
        """Connect, and look for the disks (SourceError, BusyError, RequestError)."""
        self._listener = listener
        self._machine = await Machine.connect(self._path, self._chosen, self._name)
        stack.push_async_callback(self._machine.close)
        listener.tell(notes=(f"{name} is not backed up: {reason}" for name, reason in self.left_out))
        return [disk.name for disk in self._machine.disks]

    def origins(self) -> dict[str, str]:
        """By the monitor's socket, and the names of the disks in the machine."""
        assert self._machine is not None
        qemu = RunningQemu(self._path)
        return {disk.name: origin_of(disk.name, qemu, disk.name) for disk in self._machine.disks}

    async def open(self, stack: AsyncExitStack, listener: Listener) -> Sequence[tuple[str, int]]:
        """Nothing to do: they are frozen, and read, when the job begins."""
        assert self._machine is not None
        return [(disk.name, disk.size) for disk in self._machine.disks]

    def configs(self, given: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        """Those given, and the machine's description, unless one of its name was given."""
        assert self._machine is not None
        if any(name == CONFIG_NAME for name, _ in given):
            return given
        return [*given, (CONFIG_NAME, self._machine.description)]

    def job(self, parts: Parts) -> QemuBackup:
        """What freezes the disks, and reads them (SourceError)."""
        assert self._machine is not None
        request = parts.request
        self._job = QemuBackup(
            self._machine.fleecing(self._fleecing, parts.trace, _bitmaps_of(parts)),
            parts.writer,
            parts.scanners,
            ways={disk.name: parts.choice.way_of(disk.name) for disk in self._machine.disks},
            about={
                "tool": request.tool,
                "created": request.options.created,
                "sources": [{"name": disk.name, "kind": "qemu"} for disk in self._machine.disks],
                **CRASH,
            },
            filesystems=None if self._agent is None else FilesystemFreeze(self._agent, self._listener.warn),
            skip_unreadable=request.skip_unreadable,
            before_commit=parts.before_commit,
            speed=request.speed,
            trace=parts.trace,
        )
        return self._job


def _bitmaps_of(parts: Parts) -> BitmapRequest | None:
    """What is wanted of dirty bitmaps; None where the archive is to be nobody's delta, lest one stays unasked for."""
    wish, options, parent = parts.request.parent, parts.request.options, parts.choice.parent
    if wish is None:
        return None
    return BitmapRequest(
        options.uuid,
        options.created,
        None if parent is None else _parent_archive(parent),
        keeps_parent=wish.base is not None,
        superseded=parts.choice.superseded,
    )


def _parent_archive(parent: Parent) -> ParentArchive:
    identities = [link.identity for link in parent.chain.links]
    return ParentArchive(
        parent.identity.uuid,
        parent.identity.created,
        {drive.name: drive.size for drive in parent.identity.drives},
        frozenset(identity.uuid for identity in identities[1:]),
        frozenset(name for identity in identities for name in unread_in(identity)),
    )


def unread_in(identity: ArchiveIdentity) -> Iterator[str]:
    """The drives of which an archive says that it could not read all."""
    told = identity.about.get("unreadable")
    for one in told if isinstance(told, list) else ():
        if isinstance(one, dict) and isinstance(name := one.get("drive"), str):
            yield name
