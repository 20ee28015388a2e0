"""pybackup run --forget: what backups have left in a machine on purpose is removed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pybackup.cli.command import Command
from pybackup.cli.elsewhere import source_place
from pybackup.cli.options import json_option
from pybackup.cli.params import PlainPath
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.running import run_in_loop, tell_report
from pybackup.core.errors import BusyError, RequestError
from pybackup.core.places.kinds import LibvirtDomain, RunningQemu, SourcePlace
from pybackup.core.qemu.forgetting import Forgotten, forget_bitmaps

if TYPE_CHECKING:
    from pybackup.core.libvirt.forgetting import ForgottenCheckpoint

OPTION = "--forget"
LAST_SECOND = 253402300799
"""Of the year 9999."""


def is_asked(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `run` are for this; the help is the same for both."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return OPTION in options and not {"-h", "--help"} & set(options)


@click.command("run", cls=Command)
@click.option(OPTION, "_forget", is_flag=True, expose_value=False)
@click.argument("source", type=PlainPath(source_place), metavar="qmp:SOCKET|libvirt:DOMAIN")
@click.option("--connect", default=None, metavar="URI", help="With libvirt: the hypervisor whose domain is meant.")
@click.option("-q", "--quiet", is_flag=True, help="Only failures.")
@json_option
def command(source: SourcePlace, connect: str | None, quiet: bool, as_json: bool) -> int:
    """Remove from a machine the records of changes that backups have left there, so that the next one reads all."""
    forgotten = run_in_loop(_forget(source, connect))
    gone, left = [one for one in forgotten if not one.reason], [one for one in forgotten if one.reason]
    if as_json:
        tell_report(json_text({"forgotten": [one.told for one in gone], "left": [one.told for one in left]}))
    elif not quiet:
        _print(source, forgotten)
    if left:
        reasons = "; ".join(dict.fromkeys(one.reason for one in left))
        what = "dirty bitmaps" if isinstance(source, RunningQemu) else "checkpoints"
        raise BusyError(f"{_whose(source)} does not give up {len(left)} of its {what}: {reasons}")
    return 0


class _Record(NamedTuple):
    """A record of changes. ``told``: all about it, as JSON; ``reason``: why it stays, empty where it is gone."""

    drive: str
    archive: bytes
    created: int
    reason: str
    told: dict[str, Any]


async def _forget(source: SourcePlace, connect: str | None) -> Sequence[_Record]:
    """Remove them (RequestError where there cannot be any, BusyError, SourceError)."""
    if isinstance(source, RunningQemu) and connect is None:
        return [_of_qemu(one) for one in await forget_bitmaps(source.monitor)]
    if isinstance(source, LibvirtDomain) and source.domain:
        from pybackup.core.libvirt.forgetting import forget_checkpoints

        return [_of_libvirt(one) for one in await forget_checkpoints(connect, source.domain)]
    raise RequestError(
        f"{OPTION} takes qmp:SOCKET or libvirt:DOMAIN, and {source} is none: only they keep records of changes"
    )


def _whose(source: SourcePlace) -> str:
    return f"QEMU at {source.monitor}" if isinstance(source, RunningQemu) else str(source)


def _of_qemu(one: Forgotten) -> _Record:
    name = one.name
    told: dict[str, Any] = {"node": one.node, "bitmap": str(name), "drive": name.drive}
    return _record(name.drive, name.archive, name.created, one.reason, told)


def _of_libvirt(one: ForgottenCheckpoint) -> _Record:
    told: dict[str, Any] = {"checkpoint": str(one.instant), "drives": list(one.disks)}
    return _record(", ".join(one.disks), one.instant.uuid, one.instant.created, one.reason, told)


def _record(drive: str, archive: bytes, created: int, reason: str, told: dict[str, Any]) -> _Record:
    told |= {"created": created, "archive": str(uuid.UUID(bytes=archive))}
    return _Record(drive, archive, created, reason, told | ({"reason": reason} if reason else {}))


def _print(source: SourcePlace, found: Sequence[_Record]) -> None:
    if not found:
        say(f"{_whose(source)} records no changes for pybackup")
    for one in found:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(one.created, LAST_SECOND)))
        archive = uuid.UUID(bytes=one.archive)
        word = "stays" if one.reason else "is forgotten"
        say(f"{one.drive}: the record of what changed since {since} (archive {archive}) {word}")
