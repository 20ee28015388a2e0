"""Removes from a QEMU what a run put into it: at its end; where it was killed by its guardian, or else by the next run.

Nobody keeps a list of what was done, for a command may have been sent by a run that did not live to see the answer.
Everything of ours has a name that tells the run (see names.py), so QEMU itself is asked what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from pybackup.core.errors import BusyError

from .monitor import Monitor, RefusedError
from .names import PREFIX, folder_name, maker_of, new_run

REMOVE_SECONDS = 60.0
"""How long the removal may take; jobs and exports have to finish what is under way on slow disks."""
LOOK_SECONDS = 0.02
STUCK_SECONDS = 2.0
"""How long an export may take to go before it is taken for one that waits for somebody to read from it."""
GUARDIAN_SECONDS = 3.0
"""How long a run that is found alive may be one that was killed, whose guardian is at work: that takes less."""


class Commands(Protocol):
    """What can be asked of a monitor, whoever has connected to it."""

    def knows(self, command: str, argument: str | None = None) -> bool:
        """Whether there is such a command, with such an argument."""

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Execute a command; its answer (RefusedError, MonitorLostError)."""


class RunMark:
    """Tells other runs that this one lives: the process's end, however it ends, is that of the mark.

    The mark is a socket in Linux's abstract namespace, which leaves no file behind. Whoever has its descriptor keeps
    it, so that a guardian counts as the run itself. Fixed: the run.
    """

    def __init__(self) -> None:
        self.run = new_run()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(_mark(self.run))

    def fileno(self) -> int:
        """The descriptor that keeps the mark."""
        return self._sock.fileno()

    def close(self) -> None:
        """Take the mark away."""
        self._sock.close()


def _mark(run: str) -> str:
    return f"\0{PREFIX}qemu-{run}"


def is_alive(run: str) -> bool:
    """Whether the run's process is there."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.bind(_mark(run))
        except OSError:
            return True
    return False


@dataclass(slots=True)
class Found:
    """What runs have left in QEMU.

    The state of jobs by id, exports, nodes, (node, name) of bitmaps, and names of descriptor sets by their number.
    """

    jobs: dict[str, str] = field(default_factory=dict)
    exports: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    bitmaps: list[tuple[str, str]] = field(default_factory=list)
    descriptors: dict[int, str] = field(default_factory=dict)
    foreign_exports: bool = False

    @property
    def names(self) -> list[str]:
        """The names of all that somebody else could stumble over."""
        return [*self.jobs, *self.exports, *self.nodes, *(name for _, name in self.bitmaps)]

    def needs_server(self, run: str) -> bool:
        """Whether QEMU's NBD server may be that of the run: it is stopped before the last of its nodes goes."""
        names = [*self.jobs, *self.exports, *self.nodes]
        return any(maker.run == run for maker in map(maker_of, names) if maker is not None)

    @property
    def runs(self) -> dict[str, bool]:
        """The runs that left something, and whether they shared QEMU's NBD server with others."""
        made = map(maker_of, [*self.names, *self.descriptors.values()])
        return dict(one for one in made if one is not None)


async def look(monitor: Commands, run: str = "", but: Collection[str] = ()) -> Found:
    """What there is of one run, or of all; ``but`` some names."""

    def ours(name: str) -> bool:
        maker = maker_of(name)
        return maker is not None and run in ("", maker.run) and name not in but

    jobs = await monitor.execute("query-jobs")
    exports = await monitor.execute("query-block-exports")
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    sets: list[dict[str, Any]] = await monitor.execute("query-fdsets") if monitor.knows("query-fdsets") else []
    opaque = {one["fdset-id"]: str(fd.get("opaque", "")) for one in sets for fd in one["fds"]}
    return Found(
        jobs={job["id"]: job["status"] for job in jobs if ours(job["id"])},
        exports=[export["id"] for export in exports if ours(export["id"])],
        nodes=[node["node-name"] for node in nodes if ours(node["node-name"])],
        bitmaps=[
            (node["node-name"], bitmap["name"])
            for node in nodes
            for bitmap in node.get("dirty-bitmaps") or ()
            if ours(bitmap.get("name", ""))
        ],
        descriptors={number: name for number, name in opaque.items() if ours(name)},
        foreign_exports=any(not ours(export["id"]) for export in exports),
    )


async def remove_run(monitor: Commands, run: str, *, server: bool, but: Collection[str] = ()) -> list[str]:
    """Remove all that a run put into QEMU, its NBD server too with ``server``; the names of what would not go.

    ``but``: names of what is to stay.
    """
    begun = time.monotonic()
    tried: list[tuple[str, str]] = []
    released = not monitor.knows("closefd")
    while (found := await look(monitor, run, but)).names or server:
        for export in found.exports:
            await _try(monitor, "block-export-del", {"id": export, "mode": "hard"})
        stuck = time.monotonic() - begun > STUCK_SECONDS
        if not released and (stuck or not found.exports):
            await release_connections(monitor, run)
            released = True
        if server and not found.exports:
            await _try(monitor, "nbd-server-stop")
            server = False
        for job, status in found.jobs.items():
            await _try(monitor, "job-dismiss" if status == "concluded" else "job-cancel", {"id": job})
        # An image's node uses that of its file, whose name is the longer one.
        for node in () if found.exports or found.jobs else sorted(found.nodes, key=len):
            await _try(monitor, "blockdev-del", {"node-name": node})
        for node, bitmap in () if found.exports else found.bitmaps:
            await _try(monitor, "block-dirty-bitmap-remove", {"node": node, "name": bitmap})
        if time.monotonic() - begun > REMOVE_SECONDS:
            return found.names
        waits = found.exports or found.jobs or (found.bitmaps and found.bitmaps == tried)
        tried = found.bitmaps
        await asyncio.sleep(LOOK_SECONDS if waits else 0)
    # QEMU closes descriptors of sets only while the machine runs, at the next occasion: there is nothing to wait for.
    for number in found.descriptors:
        await _try(monitor, "remove-fd", {"fdset-id": number})
    return []


async def keep_connection(monitor: Monitor, run: str, number: int, sock: socket.socket) -> None:
    """Give QEMU our end of a connection to its NBD server to keep, so that it does not see us go when we are killed.

    ``number``: how many it has of this run already.

    Several QEMUs, such as 7.2 of Debian 12, end themselves, and the guest with them, by a failed assertion
    (nbd_blockdev_client_closed) when a client leaves an export of a disk that has an I/O thread. What ends a connection
    well is to delete its export, and that is what this run does first or, when it was killed, its guardian or the next.
    """
    if monitor.knows("getfd") and monitor.knows("closefd"):
        monitor.send_descriptor(sock.fileno())
        await monitor.execute("getfd", {"fdname": _connection(run, number)})


async def release_connections(monitor: Commands, run: str) -> None:
    """Let QEMU close what it kept. No command lists them, but their names are known.

    Of exports that are gone; or of one that does not go because QEMU waits to send what nobody reads (runs of 0.1.0 did
    not see to it that there was room): when the other end is closed it gives up, and does not abort, for the export is
    being deleted already.
    """
    await _try(monitor, "closefd", {"fdname": folder_name(run)})  # the socket to listen on, if it was not used
    for number in count():
        try:
            await monitor.execute("closefd", {"fdname": _connection(run, number)})
        except RefusedError:
            return


def _connection(run: str, number: int) -> str:
    return f"{PREFIX}{run}-{number}-nbd"


async def _try(monitor: Commands, command: str, arguments: dict[str, Any] | None = None) -> None:
    """What is refused now is tried again as long as it is there."""
    with contextlib.suppress(RefusedError):
        await monitor.execute(command, arguments)


async def remove_leftovers(monitor: Monitor) -> None:
    """Remove what killed runs left behind. BusyError where a run is under way, or something will not go."""
    found = await look(monitor)
    until = time.monotonic() + GUARDIAN_SECONDS
    while any(is_alive(run) for run in found.runs):
        if time.monotonic() > until:
            raise BusyError(f"another pybackup is backing up the machine of the monitor at {monitor.path}")
        await asyncio.sleep(LOOK_SECONDS)
        found = await look(monitor)
    for run, shared in found.runs.items():
        # The server was started after the run's first node, and is stopped before the last one goes. Only where
        # somebody else's export is on it, it is not for us to stop.
        server = found.needs_server(run) and not shared and not found.foreign_exports
        if left := await remove_run(monitor, run, server=server):
            raise BusyError(
                f"a killed run has left {', '.join(left)} in QEMU at {monitor.path}, and QEMU does not remove it"
            )
