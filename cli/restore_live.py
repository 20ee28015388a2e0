"""pybackup restore --live, and serve --writable: a server of disks whose contents come from an archive as needed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from pybackup.cli.advice import with_advice
from pybackup.cli.listening import listen
from pybackup.cli.numbers import percent, short
from pybackup.cli.printable import say
from pybackup.cli.progress import PERIOD, Display
from pybackup.cli.running import warn
from pybackup.cli.signals import end_event
from pybackup.cli.version import VERSION
from pybackup.core.endpoints.filled_targets import FilledTarget
from pybackup.core.errors import CancelledError, PybackupError
from pybackup.core.live.control import ControlSocket
from pybackup.core.live.recovering_server import RecoveringServer
from pybackup.core.nbd.server import NbdServer
from pybackup.core.runs.recovery import Recovery, RecoveryRequest, recover
from pybackup.core.system.systemd import notify
from pybackup.core.tasks import beside, end
from pybackup.core.trace import Trace


@dataclass(frozen=True, slots=True)
class Serving:
    """How a live restore is served: where, and whether it prints that."""

    socket: str | None
    tcp: str | None
    control: str | None
    quiet: bool


async def restore_live(request: RecoveryRequest, serving: Serving, display: Display, trace: Trace) -> int:
    """Serve until somebody ends it; 0 if all is there, else raises why not, and says how to go on."""
    async with AsyncExitStack() as stack:
        recovery = await stack.enter_async_context(recover(request, warn=lambda told: warn([told]), trace=trace))
        for target in recovery.targets.values():
            if target.is_resumed and not serving.quiet:
                say(f"pybackup: {_resumed(target)}", err=True)
        signals = await _serve(recovery, serving, display, stack)
    return _outcome(recovery, signals)


def _resumed(target: FilledTarget) -> str:
    """What there is to say of a disk that was begun before."""
    if not target.device.is_whole:
        return f"going on with {target.path}, of which {short(target.device.left)} is to come"
    told = "" if target.map_path is None else f", as {target.map_path} tells; to begin anew, remove that"
    return f"all of {target.path} is there already{told}"


async def _serve(recovery: Recovery, serving: Serving, display: Display, stack: AsyncExitStack) -> list[int]:
    """Serve the disks until the end; the signals that came."""
    numbers: list[int] = []
    told_to_end = end_event(numbers)
    server = RecoveringServer(
        recovery.job, tool=f"pybackup {VERSION}", tell=lambda told: warn([told]), in_words=with_advice
    )
    nbd = NbdServer(server.drives)
    listening = await listen(nbd, serving, list(server.drives), stack)

    def clients() -> dict[str, object]:
        counts = nbd.connections_by_export()
        drives = [{**drive, "connections": counts[drive["name"]]} for drive in server.status()["drives"]]
        return {"connections": nbd.connections, "drives": drives}

    # What waits for a store that does not answer would be waited for, too.
    stack.callback(recovery.stop)
    control = ControlSocket(listening.control, server, clients, told_to_end)
    stack.push_async_callback(control.close)
    filling = asyncio.create_task(recovery.job.run())
    stack.push_async_callback(end, [filling])
    listening.announce(quiet=serving.quiet)
    async with beside(_show(recovery, filling, display, quiet=serving.quiet)):
        await told_to_end.wait()
    notify("STOPPING=1")
    return numbers


async def _show(recovery: Recovery, filling: asyncio.Task[None], display: Display, *, quiet: bool) -> None:
    """Show how far it is, and tell when all is there, or what keeps it from that."""
    job = recovery.job
    display.start(job, "restore")
    try:
        while not filling.done():
            await asyncio.wait([filling], timeout=PERIOD)
            job.count()
            display.update(job)
    finally:
        display.stop(job)
    if job.error is not None:
        warn([f"{with_advice(job.error)}; the disks are served on as long as their users can bear it"])
    elif not quiet:
        paths = " and ".join(target.path for target in recovery.targets.values())
        say(f"pybackup: all is there of {paths}; it is served on until the end", err=True)


def _outcome(recovery: Recovery, signals: list[int]) -> int:
    """0 if all is there, and recorded as that; else an error that says how to go on."""
    job = recovery.job
    job.count()
    maps = [target.map_path for target in recovery.targets.values() if target.map_path is not None]
    if job.error is None or not maps:
        return 0
    share = percent(job.progress.done, job.progress.size)
    told = f"{share} of it is there; the same command goes on with it, as long as {' and '.join(maps)} is kept"
    if not isinstance(job.error, CancelledError):
        raise _IncompleteError(f"the restore is not complete: {with_advice(job.error)}; {told}", job.error)
    raise CancelledError(f"the restore is not complete: {told}", signals[0] if signals else 0)


class _IncompleteError(PybackupError):
    """The restore was ended by a failure, whose exit code counts."""

    def __init__(self, message: str, reason: BaseException) -> None:
        super().__init__(message)
        self.exit_code = reason.exit_code if isinstance(reason, PybackupError) else 1
