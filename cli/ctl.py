"""pybackup ctl: steer a running server."""

from __future__ import annotations

import base64
import json
from typing import Any

import click
from pybackup.cli.numbers import duration, percent, short
from pybackup.cli.options import json_option
from pybackup.cli.params import NamedPath, Size, parse_size
from pybackup.core.control_client import absolute, ask
from pybackup.core.errors import RequestError

_COMMANDS = ("backup", "status", "speed", "pause", "resume", "cancel", "quit")


@click.command("ctl", short_help="Steer a running server.")
@click.argument("control", metavar="CONTROL")
@click.argument("what", type=click.Choice(_COMMANDS), metavar="COMMAND")
@click.argument("value", required=False)
@click.option("--speed", type=Size(), default="0", metavar="RATE", help="With backup: at most RATE bytes a second.")
@click.option("--level", type=click.IntRange(1, 22), default=None, metavar="N", help="With backup: compression level.")
@click.option("--compress", type=click.Choice(["zstd", "none"]), default="zstd", help="With backup: as in `run`.")
@click.option(
    "-c",
    "--config",
    "configs",
    type=NamedPath(),
    multiple=True,
    metavar="[NAME=]FILE",
    help="With backup: as in `run`.",
)
@click.option("-f", "--force", is_flag=True, help="With backup: replace ARCHIVE if it exists.")
@json_option
def command(control: str, what: str, value: str | None, as_json: bool, **options: Any) -> int:
    """Steer the server whose control socket is CONTROL.

    \b
    backup ARCHIVE  begin a backup of all its disks; returns when they are frozen, and goes on in the server
    status          tell about disks, clients, the running backup, and the last one
    speed RATE      change the running backup's speed; 0 means no limit
    pause, resume   hold the running backup, go on with it
    cancel          cancel it; returns when it has ended
    quit            end the server; a running backup is cancelled
    """
    if (value is None) == (what in ("backup", "speed")):
        raise RequestError(f"{what} needs a value" if value is None else f"{what} takes no value")
    answer = ask(control, {"command": what, **_arguments(what, value, options)})
    if as_json:
        print(json.dumps({key: content for key, content in answer.items() if key != "ok"}))
    elif what == "status":
        _print_status(answer)
    return 0


def _arguments(what: str, value: str | None, options: dict[str, Any]) -> dict[str, Any]:
    if what == "speed":
        try:
            return {"speed": parse_size(value or "")}
        except ValueError as error:
            raise RequestError(str(error)) from None
    if what != "backup":
        return {}
    from pybackup.cli.run import read_config

    configs = {name: base64.b64encode(content).decode() for name, content in map(read_config, options["configs"])}
    asked = {
        "archive": absolute(value or ""),
        "speed": options["speed"],
        "compress": options["compress"],
        "force": options["force"],
        "configs": configs,
    }
    return asked if options["level"] is None else {**asked, "level": options["level"]}


def _print_status(status: dict[str, Any]) -> None:
    for drive in status["drives"]:
        mode = "read-only" if drive["read_only"] else "read-write"
        click.echo(f"drive    {drive['name']}: {short(drive['size'])}, {mode}, {drive['connections']} clients")
    for kind in ("job", "last"):
        job = status[kind]
        if job is None:
            continue
        outcome = job["error"] or ("done" if job["state"] == "concluded" else job["state"])
        click.echo(
            f"{'backup' if kind == 'job' else 'last':8} {percent(job['done'], job['size'])} of {short(job['size'])},"
            f" {short(job['written'])} written, {duration(job['seconds'])}: {outcome}"
        )
    if status["job"] is None and status["last"] is None:
        click.echo("backup   none yet")
