"""What is done for a run that was killed: everything of it is taken out of QEMU, seconds later, whoever comes next.

It happens in the watchdog's process (system/watchdog.py), on the run's own connection to the monitor, of which that
process has a descriptor: so nobody can come between, and the monitor is free for others when it is done. The run's
mark is kept as well, so that a run on another monitor waits, and does not begin what would be removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pybackup.core.system.watchdog_process import Note

if TYPE_CHECKING:
    from pybackup.core.system.watchdog import Watchdog

    from .leftovers import RunMark
    from .monitor import Monitor

ACT_SECONDS = 90
"""How long it may take: jobs and exports have to finish what is under way on slow disks."""


def hand_over_run(
    watchdog: Watchdog, monitor: Monitor, mark: RunMark, folder: str, *, shared: bool, reserve: int
) -> None:
    """Tell the watchdog what it needs to know, before anything is done (OSError).

    ``shared``: QEMU's NBD server is; ``reserve``: bytes that are to stay free where ``folder`` is.
    """
    told = {"run": mark.run, "monitor": monitor.path, "folder": folder, "shared": shared}
    told |= {"process": os.getpid(), "reserve": reserve}
    watchdog.hand_over(json.dumps(told), [monitor.fileno(), mark.fileno()])


def wake_run(notes: list[Note]) -> None:
    """What the watchdog does meanwhile: where the room gets short, it wakes the run if that is suspended.

    A run that lives ends itself before a guest's write fails for want of room; one that was stopped (Ctrl-Z, SIGSTOP)
    would not know of it. One that runs does not notice the signal.
    """
    for note in notes:
        told = json.loads(note.text)
        with contextlib.suppress(OSError):
            room = os.statvfs(os.path.dirname(told["folder"]))
            if room.f_bavail * room.f_frsize < told["reserve"] and os.getppid() == told["process"]:
                os.kill(told["process"], signal.SIGCONT)


def remove_dead_run(notes: list[Note]) -> None:
    """The watchdog's act."""
    import asyncio

    for note in notes:
        asyncio.run(_remove(note.text, note.descriptors))


async def _remove(text: str, descriptors: Sequence[int]) -> None:
    from pybackup.core.system.marked_folder import remove_stale

    from .handover import PREFIXES
    from .leftovers import look, remove_run
    from .monitor import MonitorLostError
    from .monitor_taken_over import MonitorTakenOver

    told = json.loads(text)
    try:
        monitor = await MonitorTakenOver.begin(descriptors[0], told["monitor"])
        found = await look(monitor, told["run"])
        # The server is started after the first node is there, and stopped before the last one goes.
        server = found.needs_server(told["run"]) and not told["shared"] and not found.foreign_exports
        await remove_run(monitor, told["run"], server=server)
        await monitor.close()
    except MonitorLostError:
        pass  # QEMU has ended, and everything with it
    finally:
        remove_stale(told["folder"], PREFIXES)
