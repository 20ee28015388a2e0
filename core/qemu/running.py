"""A running QEMU, from the connection to its monitor to what freezes its disks."""

from __future__ import annotations

from collections.abc import Sequence

from pybackup.core.errors import Advice, RequestError, SourceError
from pybackup.core.trace import Trace

from .bitmaps import BitmapRequest
from .disks import LeftOut, QemuDisk, find_disks, select
from .fleecing import Fleecing, FleecingOptions
from .leftovers import remove_leftovers
from .machine import describe_machine
from .migration import refuse_migration
from .monitor import Monitor

NEEDED = (
    "block-export-add",
    "block-export-del",
    "blockdev-add",
    "blockdev-backup",
    "blockdev-create",
    "blockdev-del",
    "job-cancel",
    "job-dismiss",
    "nbd-server-start",
    "nbd-server-stop",
    "qom-list",
    "query-block",
    "query-block-exports",
    "query-jobs",
    "query-named-block-nodes",
    "transaction",
)
"""The commands used; QEMU has all of them since 5.2."""


class RunningQemu:
    """A QEMU that we are connected to.

    Fixed: the disks to back up, what is left out on purpose, and the description of the machine as JSON.
    """

    def __init__(
        self, monitor: Monitor, disks: Sequence[QemuDisk], left_out: Sequence[LeftOut], description: bytes
    ) -> None:
        self._monitor = monitor
        self.disks, self.left_out, self.description = disks, left_out, description

    @classmethod
    async def connect(cls, path: str, chosen: Sequence[str] = (), name: str | None = None) -> RunningQemu:
        """Connect to the monitor at ``path``, remove what killed runs left behind, and look for the disks.

        ``chosen`` are the names of the disks wanted, all if there are none; ``name`` is a new one for the only disk.
        Raises SourceError, BusyError, RequestError.
        """
        monitor = await Monitor.connect(path)
        try:
            missing = [command for command in NEEDED if not monitor.knows(command)]
            if missing:
                raise SourceError(f"QEMU at {monitor.path} is too old: it does not know {', '.join(missing)}")
            await _refuse_dangerous(monitor)
            await remove_leftovers(monitor)
            await refuse_migration(monitor)
            disks = await find_disks(monitor)
            chosen_disks = _renamed(select(disks, chosen), name)
            return cls(monitor, chosen_disks, disks.left_out, await describe_machine(monitor))
        except BaseException:
            await monitor.close()
            raise

    def fleecing(
        self, options: FleecingOptions, trace: Trace | None = None, bitmaps: BitmapRequest | None = None
    ) -> Fleecing:
        """What freezes the disks, for one backup; ``bitmaps``: what it wants of their dirty bitmaps, if anything."""
        return Fleecing(self._monitor, self.disks, options, trace or Trace(), bitmaps)

    async def close(self) -> None:
        """Leave the monitor."""
        await self._monitor.close()


async def _refuse_dangerous(monitor: Monitor) -> None:
    """Where to ask for a backup would end QEMU, and with it the guests.

    Until 9.0, whose successor has discard-source, a storage daemon aborts when a node gets a backing file whose export
    runs in an I/O thread (seen with 7.2: qemu_mutex_unlock_impl). Machines with I/O threads are not concerned.
    """
    if monitor.knows("query-status") or monitor.knows("blockdev-backup", "discard-source"):
        return
    objects: list[dict[str, str]] = []
    # The folder of objects comes with the first of them.
    if any(one["name"] == "objects" for one in await monitor.execute("qom-list", {"path": "/"})):
        objects = await monitor.execute("qom-list", {"path": "/objects"})
    if any(one["type"] == "child<iothread>" for one in objects):
        raise SourceError(
            f"the storage daemon at {monitor.path} has I/O threads, and daemons as old as this one end themselves when"
            " a backup of an export in such a thread begins; start it without --object iothread"
        )


def _renamed(disks: Sequence[QemuDisk], name: str | None) -> Sequence[QemuDisk]:
    if name is None:
        return disks
    if len(disks) > 1:
        known = ", ".join(disk.name for disk in disks)
        raise RequestError(f"{name}= names one disk, and the machine has {known}", advice=Advice.ONE_DRIVE)
    return [disks[0]._replace(name=name)]
