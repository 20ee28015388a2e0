"""pybackup serve: offer disks over NBD."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import click

from pybackup.cli.advice import with_advice
from pybackup.cli.command import Command
from pybackup.cli.elsewhere import served_place
from pybackup.cli.listening import listen
from pybackup.cli.options import agent_options, format_option, key_options, listening_options, parents_option
from pybackup.cli.params import Named, NamedPath, PlainPath, Seconds, Size
from pybackup.cli.request import takes
from pybackup.cli.running import run_in_loop, warn
from pybackup.cli.signals import end_event
from pybackup.cli.version import VERSION
from pybackup.core.archive.chain import ParentSearch
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.cow.fleece_file import FleecePlace
from pybackup.core.cow.guest_copies import OnError
from pybackup.core.errors import RequestError
from pybackup.core.guest.filesystem_freeze import AgentOptions
from pybackup.core.jobs.backup import GuestPolicy
from pybackup.core.live.control import ControlSocket
from pybackup.core.live.served_disks import ServedDisk, is_archive, open_served
from pybackup.core.live.server import LiveServer
from pybackup.core.nbd.server import NbdServer
from pybackup.core.places.kinds import HistoryPlace, LocalPath, ServedPlace, StoreUrl
from pybackup.core.system.systemd import notify

SWITCH_INTERVAL = 0.0005
"""Seconds that a thread may keep the interpreter while the event loop, on which guests wait, wants it."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked of `serve`."""

    sources: Sequence[Named[ServedPlace]]
    socket: str | None
    tcp: str | None
    control: str | None
    read_only: bool
    image_format: str | None
    force_share: bool
    on_error: str
    cow_buffer: int
    cow_timeout: float
    copy_on_read: bool
    fleece: str | None
    fleece_size: int | None
    parents: Sequence[HistoryPlace]
    no_fleece: bool
    guest_agent: str | None
    freeze_timeout: float
    quiet: bool
    is_writable: bool
    overlay: str | None


@click.command("serve", cls=Command, short_help="Offer disks in use, or what an archive holds, over NBD.")
@click.argument("sources", type=NamedPath(served_place), nargs=-1, required=True, metavar="[NAME=]SOURCE... | ARCHIVE")
@listening_options()
@click.option("-r", "--read-only", is_flag=True, help="Refuse every change.")
@click.option(
    "--writable",
    "is_writable",
    is_flag=True,
    help="Let the drives of an ARCHIVE be written to. The archive stays as it is: what is written is dropped in the"
    " end, or kept by --overlay.",
)
@click.option(
    "--overlay",
    type=PlainPath(),
    default=None,
    metavar="FILE",
    help="With --writable: keep what is written in this file, or for several drives in files of this folder, to go on"
    " with it later, here or with `pybackup restore --live ARCHIVE FILE`.",
)
@format_option
@parents_option
@click.option(
    "--force-share",
    is_flag=True,
    help="Serve a disk that is mounted or otherwise in use, or locked by another program.",
)
@click.option(
    "--on-error",
    type=click.Choice([str(one) for one in OnError]),
    default=str(OnError.BREAK_BACKUP),
    show_default=True,
    help="What fails when the old data of a guest's write cannot be saved: the backup, or that write.",
)
@click.option(
    "--cow-buffer",
    type=Size(1 << 20),
    default="64M",
    show_default=True,
    metavar="SIZE",
    help="Memory for old data on its way to a slow archive; at least 8M where it can be fleeced.",
)
@click.option(
    "--cow-timeout",
    type=Seconds(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a guest's write waits for room before --on-error decides; 0 means for ever.",
)
@click.option("--copy-on-read", is_flag=True, help="Use guests' reads for the backup too.")
@click.option(
    "--fleece",
    type=PlainPath(),
    default=None,
    show_default="$TMPDIR or /var/tmp",
    metavar="DIR",
    help="A folder for a temporary file that takes old data when the memory fills; it leaves 256 MiB free there.",
)
@click.option("--fleece-size", type=Size(1 << 20), default=None, metavar="SIZE", help="The most that file may take.")
@click.option("--no-fleece", is_flag=True, help="Keep old data in memory alone; guests wait when it is full.")
@agent_options()
@key_options
@click.option("-q", "--quiet", is_flag=True, help="Do not print where to connect.")
@takes(_Request)
def command(request: _Request) -> int:
    """Offer disks over NBD, read-write, and let them be backed up at any time while they are in use.

    `pybackup run serve:CONTROL ARCHIVE` makes a backup, `pybackup ctl CONTROL ...` steers. All disks of a server are
    frozen at the same instant. A SOURCE may be a disk of another server, nbd://HOST[:PORT]/EXPORT or
    nbd+unix:///EXPORT?socket=PATH: so it can be backed up while it is in use. An ARCHIVE is offered
    read-only, every drive under its name; with --writable, read-write.

    The folder of a socket is made, for the user alone, where only it is missing.

    The addresses to connect to are printed on stdout, one a line, when everything is ready. The server ends with
    SIGINT, SIGTERM or `pybackup ctl CONTROL quit`.
    """
    if request.no_fleece and (request.fleece or request.fleece_size):
        raise RequestError("--no-fleece goes with neither --fleece nor --fleece-size")
    if request.overlay is not None and not request.is_writable:
        raise RequestError("--overlay goes only with --writable")
    if request.is_writable and (request.read_only or request.image_format or request.force_share):
        raise RequestError("--writable is for an archive: --read-only, --format and --force-share do not go with it")
    sys.setswitchinterval(SWITCH_INTERVAL)
    return run_in_loop(_serve(request))


async def _serve(request: _Request) -> int:
    async with AsyncExitStack() as stack:
        disks = await (_open_writable if request.is_writable else _open_disks)(request, stack)
        told_to_end = end_event()
        drives = {name: one.device for name, one in disks.items() if isinstance(one.device, CopyBeforeWrite)}
        fleece = await _fleece_place(request, drives.values())
        live = LiveServer(
            drives,
            policy=_policy(request),
            labels={name: one.label for name, one in disks.items()},
            shared=[name for name, one in disks.items() if one.is_shared],
            tool=f"pybackup {VERSION}",
            fleece=fleece,
            agent=None if request.guest_agent is None else AgentOptions(request.guest_agent, request.freeze_timeout),
            tell=lambda told: warn([told]),
            in_words=with_advice,
        )
        nbd = NbdServer({name: one.device for name, one in disks.items()})
        listening = await listen(nbd, request, list(disks), stack)
        for disk in disks.values():
            # What waits for a store that does not answer would be waited for, too.
            stack.callback(disk.stop)
        control = ControlSocket(listening.control, live, lambda: _clients(disks, live, nbd), told_to_end)
        stack.push_async_callback(control.close)
        listening.announce(quiet=request.quiet)
        await told_to_end.wait()
        notify("STOPPING=1")
    return 0


async def _open_disks(request: _Request, stack: AsyncExitStack) -> dict[str, ServedDisk]:
    disks = await open_served(
        request.sources,
        image_format=request.image_format,
        read_only=request.read_only,
        force_share=request.force_share,
        search=ParentSearch(request.parents),
    )
    for disk in disks.values():
        stack.push_async_callback(disk.close)
        if disk.warning is not None:
            warn([disk.warning])
    return disks


async def _open_writable(request: _Request, stack: AsyncExitStack) -> dict[str, ServedDisk]:
    """The drives of an archive, to be written to (RequestError where it is none)."""
    from pybackup.core.qemu.handover import default_folder
    from pybackup.core.runs.writable import WritableRequest, writable

    place = request.sources[0].what
    if len(request.sources) > 1 or not isinstance(place, LocalPath | StoreUrl) or not is_archive(place):
        raise RequestError("--writable is for one archive; disks are served read-write anyway")
    overlay = None if request.overlay is None else LocalPath(request.overlay)
    wanted = WritableRequest(place, default_folder(), overlay, request.parents)
    disks, stop = await stack.enter_async_context(writable(wanted, warn=lambda told: warn([told])))

    async def nothing() -> None:
        """It is closed with all others."""

    return {
        name: ServedDisk(CopyBeforeWrite(disk), nothing, f"{place}:{name}", stop=stop) for name, disk in disks.items()
    }


def _policy(request: _Request) -> GuestPolicy:
    return GuestPolicy(
        on_error=OnError(request.on_error),
        buffer=request.cow_buffer,
        timeout=request.cow_timeout or None,
        copy_on_read=request.copy_on_read,
    )


async def _fleece_place(request: _Request, drives: Iterable[CopyBeforeWrite]) -> FleecePlace | None:
    """Where to fleece; None where nobody wants it, or nothing can be written to."""
    if request.no_fleece or all(drive.read_only for drive in drives):
        return None
    from pybackup.core.qemu.handover import default_folder

    place = FleecePlace(request.fleece or default_folder(), request.fleece_size, request.fleece is not None)
    warning = await place.check()
    if warning is None:
        return place
    warn([with_advice(warning)])
    # What was asked for is tried again at each backup, which fails without it.
    return place if place.is_asked_for else None


def _clients(disks: dict[str, ServedDisk], live: LiveServer, nbd: NbdServer) -> dict[str, Any]:
    """What the status tells of clients, and of drives, those of an archive too, which no backup knows."""
    counts = nbd.connections_by_export()
    known = {drive["name"]: drive for drive in live.status()["drives"]}
    drives = [
        known.get(name) or {"name": name, "size": disk.device.size, "read_only": True, "armed": False}
        for name, disk in disks.items()
    ]
    return {
        "connections": nbd.connections,
        "drives": [
            {**drive, "connections": counts.get(drive["name"], 0), "archive": drive["name"] not in known}
            for drive in drives
        ],
    }
