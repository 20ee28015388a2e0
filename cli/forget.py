"""pybackup run --forget: what backups have left in a running QEMU on purpose is removed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import click

from pybackup.cli.command import Command
from pybackup.cli.elsewhere import source_place
from pybackup.cli.options import json_option
from pybackup.cli.params import PlainPath
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.running import run_in_loop, tell_report
from pybackup.core.errors import BusyError, RequestError
from pybackup.core.places.kinds import RunningQemu, SourcePlace
from pybackup.core.qemu.forgetting import Forgotten, forget_bitmaps

OPTION = "--forget"
LAST_SECOND = 253402300799
"""Of the year 9999."""


def is_asked(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `run` are for this; the help is the same for both."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return OPTION in options and not {"-h", "--help"} & set(options)


@click.command("run", cls=Command)
@click.option(OPTION, "_forget", is_flag=True, expose_value=False)
@click.argument("source", type=PlainPath(source_place), metavar="qmp:SOCKET")
@click.option("-q", "--quiet", is_flag=True, help="Only failures.")
@json_option
def command(source: SourcePlace, quiet: bool, as_json: bool) -> int:
    """Remove from a running QEMU the dirty bitmaps that backups have left there, so that the next one reads all."""
    if not isinstance(source, RunningQemu):
        raise RequestError(f"{OPTION} takes qmp:SOCKET, and {source} is none: only a running QEMU has dirty bitmaps")
    found: list[Forgotten] = []

    async def forget() -> None:
        found.extend(await forget_bitmaps(source.monitor))

    run_in_loop(forget())
    gone, left = [one for one in found if not one.reason], [one for one in found if one.reason]
    if as_json:
        tell_report(json_text({"forgotten": list(map(_told, gone)), "left": list(map(_told, left))}))
    elif not quiet:
        _print(source, found)
    if left:
        reasons = "; ".join(dict.fromkeys(one.reason for one in left))
        raise BusyError(f"QEMU at {source.monitor} does not give up {len(left)} of its dirty bitmaps: {reasons}")
    return 0


def _told(one: Forgotten) -> dict[str, Any]:
    name = one.name
    told = {"node": one.node, "bitmap": str(name), "drive": name.drive, "created": name.created}
    told["archive"] = str(uuid.UUID(bytes=name.archive))
    return told | ({"reason": one.reason} if one.reason else {})


def _print(source: RunningQemu, found: Sequence[Forgotten]) -> None:
    if not found:
        say(f"QEMU at {source.monitor} records no changes for pybackup")
    for one in found:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(one.name.created, LAST_SECOND)))
        archive = uuid.UUID(bytes=one.name.archive)
        word = "stays" if one.reason else "is forgotten"
        say(f"{one.name.drive}: the record of what changed since {since} (archive {archive}) {word}")
