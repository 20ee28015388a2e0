"""The backup of a running QEMU's disks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from pybackup.core.guest.consistency import CRASH
from pybackup.core.guest.filesystem_freeze import AgentOptions, FilesystemFreeze
from pybackup.core.places.kinds import RunningQemu, SourcePlace
from pybackup.core.qemu.backup import QemuBackup
from pybackup.core.qemu.disks import LeftOut
from pybackup.core.qemu.fleecing import FleecingOptions
from pybackup.core.qemu.machine import CONFIG_NAME
from pybackup.core.qemu.running import RunningQemu as Machine

from .course import Parts
from .listener import Listener


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
            self._machine.fleecing(self._fleecing, parts.trace),
            parts.writer,
            parts.scanners,
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
