"""pybackup boot: whether a backup boots."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pybackup.cli.command import Command
from pybackup.cli.elsewhere import archive_place
from pybackup.cli.options import json_option, key_options, parents_option
from pybackup.cli.params import PlainPath, Seconds, Size
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.request import takes
from pybackup.cli.running import run_in_loop, warn
from pybackup.core.errors import ExitCode, RequestError
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace

if TYPE_CHECKING:
    from pybackup.core.runs.boot import Boot


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What was asked of `boot`."""

    archive: ArchivePlace
    check: str | None
    timeout: float
    memory: int
    bus: str
    uefi: bool
    vnc: str | None
    no_kvm: bool
    drives: Sequence[str]
    parents: Sequence[HistoryPlace]
    verbose: bool
    as_json: bool


@click.command("boot", cls=Command, short_help="Start a machine from an archive, to see whether it boots.")
@click.argument("archive", type=PlainPath(archive_place))
@click.option(
    "--check",
    default=None,
    metavar="REGEX",
    help="Show nothing, and wait for a line on the serial console in which this regular expression (of Python) is"
    " found: exit code 0 as soon as one is, 1 if none is.",
)
@click.option(
    "--timeout",
    type=Seconds(1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="With --check: how long to wait.",
)
@click.option(
    "--memory", type=Size(64 << 20), default="1G", show_default=True, metavar="SIZE", help="The machine's memory."
)
@click.option(
    "--bus",
    type=click.Choice(["auto", "virtio", "scsi", "sata"]),
    default="auto",
    show_default=True,
    help="How the disks are attached. auto: as the drives' names tell (drive-scsi0, virtio1, ide0), else virtio."
    " Whatever has no drivers of virtio finds its disks on sata.",
)
@click.option("--uefi", is_flag=True, help="Boot by UEFI instead of a BIOS, which needs OVMF.")
@click.option(
    "--vnc", default=None, metavar="[HOST]:DISPLAY", help="Show the screen by VNC, as QEMU does with this address."
)
@click.option("--no-kvm", is_flag=True, help="Do not use KVM, also where it seems that it can be used.")
@click.option(
    "--drive",
    "drives",
    multiple=True,
    metavar="NAME",
    help="Attach only this drive; may be given several times. The first is booted from.",
)
@key_options
@parents_option
@click.option("-v", "--verbose", is_flag=True, help="With --check: print the serial console on stderr.")
@json_option
@takes(_Request)
def command(request: _Request) -> int:
    """Start a throw-away machine from the drives of an archive, to see whether the backup boots.

    QEMU (qemu-system-x86_64) runs it, with KVM if that can be used, on a writable view of all drives: the archive stays
    as it is, and what the machine writes is dropped in the end. It has no network. Where there is a graphical screen a
    window shows it, with --vnc a VNC viewer; else what it prints on its first serial port goes to stdout, that of the
    BIOS too. It ends when the guest is shut down, with Ctrl-C, and with this program, however that ends.

    With --check it is a proof for a cron job: a regular expression that the guest is to print on its serial console,
    such as `login:`, for which its kernel needs console=ttyS0. Exit code 0: it has; 1: it has not until the timeout,
    or until it was shut down or started anew.
    """
    return run_in_loop(_boot(request, _pattern(request)))


def _pattern(request: _Request) -> re.Pattern[str] | None:
    if request.check is None:
        if request.as_json:
            raise RequestError("--json goes only with --check")
        return None
    if request.vnc is not None:
        raise RequestError("--vnc does not go with --check")
    try:
        return re.compile(request.check)
    except re.error as error:
        raise RequestError(f"--check {request.check!r} is no regular expression: {error}") from None


async def _boot(request: _Request, pattern: re.Pattern[str] | None) -> int:
    from pybackup.core.qemu.throwaway import Bus
    from pybackup.core.runs.boot import BootRequest, boot

    has_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

    def show(text: str) -> None:
        if pattern is None or request.verbose:
            stream = sys.stdout if pattern is None else sys.stderr
            stream.write(text.encode(stream.encoding, "replace").decode(stream.encoding))
            stream.flush()

    wanted = BootRequest(
        request.archive,
        pattern,
        request.timeout,
        request.memory,
        Bus(request.bus),
        request.uefi,
        request.vnc,
        window=pattern is None and request.vnc is None and has_screen,
        kvm=not request.no_kvm,
        drives=request.drives,
        parents=request.parents,
    )
    found = await boot(wanted, show=show, note=lambda told: warn([told], "note"), warn=lambda told: warn([told]))
    if pattern is None:
        return 0
    if request.as_json:
        print(json_text(_report(request, found)))
    if found.matched is not None:
        if not request.as_json:
            say(f"{request.archive}: booted in {found.seconds:.1f} s: {found.matched.strip()}")
        return 0
    _tell_failure(request, found)
    return ExitCode.FAILED


def _tell_failure(request: _Request, found: Boot) -> None:
    ended = f"within {found.seconds:.0f} s" if found.timed_out else "before the machine ended"
    lines = [line for line in found.last_lines if line.strip()]
    told = "; its last lines:" if lines else "; it printed nothing there"
    say(
        f"pybackup: {request.archive} did not boot: nothing on the serial console matched {request.check!r}"
        f" {ended}{told}",
        err=True,
    )
    for line in lines:
        say(f"  {line}", err=True)


def _report(request: _Request, found: Boot) -> dict[str, Any]:
    return {
        "archive": str(request.archive),
        "booted": found.matched is not None,
        "matched": found.matched,
        "seconds": round(found.seconds, 3),
        "timed_out": found.timed_out,
        "accelerator": "kvm" if found.kvm else "tcg",
        "firmware": "uefi" if request.uefi else "bios",
        "disks": [{"name": disk.name, "bus": disk.bus.value} for disk in found.disks],
        "last_lines": list(found.last_lines),
    }
