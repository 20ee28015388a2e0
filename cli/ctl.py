"""pybackup ctl: steer a running server."""

from __future__ import annotations

import json
from typing import Any

import click

from pybackup.cli.command import Command
from pybackup.cli.consistency import in_words
from pybackup.cli.numbers import counted, duration, percent, short
from pybackup.cli.options import json_option
from pybackup.cli.params import PlainPath, parse_size
from pybackup.core.control_client import ask
from pybackup.core.errors import RequestError

_COMMANDS = ("backup", "status", "speed", "pause", "resume", "cancel", "quit")


@click.command(
    "ctl", cls=Command, short_help="Steer a running server.", context_settings={"ignore_unknown_options": True}
)
@click.argument("control", type=PlainPath(), metavar="CONTROL")
@click.argument("what", type=click.Choice(_COMMANDS), metavar="COMMAND")
@click.argument("values", nargs=-1, type=click.UNPROCESSED, metavar="[VALUE]...")
@json_option
def command(control: str, what: str, values: tuple[str, ...], as_json: bool) -> int:
    """Steer the server whose control socket is CONTROL.

    \b
    backup ARCHIVE [OPTIONS]  back up all its disks, like `pybackup run serve:CONTROL ARCHIVE`, with run's options
    status                    tell about disks, clients, the running backup, and the last one
    speed RATE                change the running backup's speed; 0 means no limit
    pause, resume             hold the running backup, go on with it
    cancel                    cancel it; returns when it has ended
    quit                      end the server; a running backup is cancelled
    """
    if what == "backup":
        return _backup(control, values, as_json)
    answer = ask(control, {"command": what, **_arguments(what, values)})
    if as_json:
        print(json.dumps({key: content for key, content in answer.items() if key != "ok"}))
    elif what == "status":
        _print_status(answer)
    return 0


def _backup(control: str, values: tuple[str, ...], as_json: bool) -> int:
    from pybackup.cli.run import command as run
    from pybackup.cli.run_request import SERVE

    arguments = [f"{SERVE}{control}", *values, *(["--json"] if as_json else [])]
    code: int = run.main(arguments, prog_name="pybackup ctl CONTROL backup", standalone_mode=False)
    return code


def _arguments(what: str, values: tuple[str, ...]) -> dict[str, Any]:
    if len(values) != (what == "speed"):
        raise RequestError("speed needs one RATE" if what == "speed" else f"{what} takes no value")
    if what != "speed":
        return {}
    try:
        return {"speed": parse_size(values[0])}
    except ValueError as error:
        raise RequestError(str(error)) from None


def _print_status(status: dict[str, Any]) -> None:
    for drive in status["drives"]:
        mode = "read-only" if drive["read_only"] else "read-write"
        click.echo(
            f"drive    {drive['name']}: {short(drive['size'])}, {mode}, {counted(drive['connections'], 'client')}"
        )
    for kind in ("job", "last"):
        job = status[kind]
        if job is None:
            continue
        outcome = job["error"] or ("done" if job["state"] == "concluded" else job["state"])
        click.echo(
            f"{'backup' if kind == 'job' else 'last':8} {percent(job['done'], job['size'])} of {short(job['size'])},"
            f" {short(job['written'])} written, {duration(job['seconds'])}: {outcome}"
        )
        if (state := in_words(job)) is not None:
            click.echo(f"{'':8} {state}")
    if status["job"] is None and status["last"] is None:
        click.echo("backup   none yet")
