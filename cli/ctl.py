"""pybackup ctl: steer a running server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from pybackup.cli.command import Command
from pybackup.cli.consistency import in_words
from pybackup.cli.elsewhere import control_place
from pybackup.cli.numbers import counted, duration, percent, short
from pybackup.cli.options import json_option
from pybackup.cli.params import PlainPath, parse_size
from pybackup.core.errors import RequestError
from pybackup.core.live.control_client import ask
from pybackup.core.places.kinds import RunningServer

_COMMANDS = ("backup", "status", "speed", "pause", "resume", "cancel", "quit")


_MEANT = {
    "run": "backup",
    "start": "backup",
    "stop": "cancel",
    "abort": "cancel",
    "kill": "cancel",
    "exit": "quit",
    "shutdown": "quit",
    "limit": "speed",
    "rate": "speed",
    "info": "status",
    "show": "status",
    "continue": "resume",
    "hold": "pause",
}
"""What other programs call our commands."""


class _Ctl(Command):
    """Options belong to the COMMAND: what follows it is its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As Click does it; --json and --help of any command but backup, which has run's, may stand anywhere."""
        place = next((number for number, one in enumerate(args) if not one.startswith("-")), len(args))
        if args[place + 1 : place + 2] != ["backup"]:
            ours = [one for one in args[place:] if one in ("--json", "--help", "-h")]
            args = [*args[:place], *ours, *(one for one in args[place:] if one not in ours)]
        return super().parse_args(ctx, args)


if TYPE_CHECKING:
    _CommandType = click.ParamType[str]
else:
    _CommandType = click.ParamType


class _Steer(_CommandType):
    """One of the commands."""

    name = "command"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The command; another word is told what it may have meant."""
        if value in _COMMANDS:
            return str(value)
        from difflib import get_close_matches

        meant = _MEANT.get(value) or next(iter(get_close_matches(str(value), _COMMANDS, 1)), None)
        hint = f"did you mean {meant}? There" if meant else "there"
        raise click.BadParameter(f"there is no command {value!r}; {hint} are {', '.join(_COMMANDS)}", ctx, param)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Those that begin so."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(one) for one in _COMMANDS if one.startswith(incomplete)]


@click.command(
    "ctl", cls=_Ctl, short_help="Steer a running server.", context_settings={"allow_interspersed_args": False}
)
@click.argument("control", type=PlainPath(control_place), metavar="CONTROL")
@click.argument("what", type=_Steer(), metavar="COMMAND")
@click.argument("values", nargs=-1, type=click.UNPROCESSED, metavar="[VALUE]...")
@json_option
def command(control: RunningServer, what: str, values: tuple[str, ...], as_json: bool) -> int:
    """Steer the server whose control socket is CONTROL, the path or serve:PATH as `pybackup serve` prints it.

    \b
    backup ARCHIVE  back up all its disks, as `pybackup run serve:CONTROL
                    ARCHIVE` does; the options of run may follow
    status          disks, what has changed on them, clients, the running
                    backup, and the last one
    speed RATE      change the running backup's speed, bytes a second, such
                    as 50M for 50 MiB/s; 0 means no limit
    pause, resume   hold the running backup, go on with it
    cancel          cancel it; returns when it has ended
    quit            end the server; a running backup is cancelled
    """
    if what == "backup":
        return _backup(control, values, as_json)
    answer = ask(control.control, {"command": what, **_arguments(what, values)})
    if as_json:
        print(json.dumps({key: content for key, content in answer.items() if key != "ok"}))
    elif what == "status":
        _print_status(answer)
    return 0


def _backup(control: RunningServer, values: tuple[str, ...], as_json: bool) -> int:
    from pybackup.cli.run import command as run

    arguments = [str(control), *values, *(["--json"] if as_json else [])]
    code: int = run.main(arguments, prog_name="pybackup ctl CONTROL backup", standalone_mode=False)
    return code


def _arguments(what: str, values: tuple[str, ...]) -> dict[str, Any]:
    if len(values) != (what == "speed"):
        raise RequestError(
            "speed needs one RATE: `pybackup ctl CONTROL speed 50M`, or 0 for no limit"
            if what == "speed"
            else f"{what} takes no value, but there is {' '.join(values)[:64]!r}"
        )
    if what != "speed":
        return {}
    try:
        return {"speed": parse_size(values[0])}
    except ValueError as error:
        raise RequestError(str(error)) from None


def _print_status(status: dict[str, Any]) -> None:
    for drive in status["drives"]:
        mode = "of an archive" if drive.get("archive") else "read-only" if drive["read_only"] else "read-write"
        click.echo(
            f"drive    {drive['name']}: {short(drive['size'])}, {mode}, {counted(drive['connections'], 'client')}"
        )
        if (changed := drive.get("changed")) is not None:
            click.echo(f"{'':8} {short(changed)} changed since the last archive")
    if (restore := status.get("restore")) is not None:
        _print_restore(restore)
    for kind in ("job", "last"):
        job = status[kind]
        if job is None:
            continue
        outcome = job["error"] or ("done" if job["state"] == "concluded" else job["state"])
        click.echo(
            f"{'backup' if kind == 'job' else 'last':8} {percent(job['done'], job['size'])} of {short(job['size'])},"
            f" {_amounts(job)}, {duration(job['seconds'])}: {outcome}"
        )
        if (state := in_words(job)) is not None:
            click.echo(f"{'':8} {state}")
    if (
        restore is None
        and status["job"] is None
        and status["last"] is None
        and not all(one.get("archive") for one in status["drives"])
    ):
        click.echo("backup   none yet")


def _print_restore(restore: dict[str, Any]) -> None:
    outcome = restore["error"] or ("all is there" if restore["state"] == "concluded" else restore["state"])
    click.echo(
        f"restore  {percent(restore['done'], restore['size'])} of {short(restore['size'])},"
        f" {duration(restore['seconds'])}: {outcome}"
    )
    if restore["problem"] is not None and restore["state"] != "concluded":
        click.echo(f"{'':8} {counted(restore['problems'], 'failure')}, the last: {restore['problem']}")


def _amounts(job: dict[str, Any]) -> str:
    """What was read and written; of a backup that runs, these do not belong together yet."""
    stored, written = short(job["stored"]), short(job["written"])
    return f"{stored} stored in {written}" if job["state"] == "concluded" else f"{stored} read, {written} written"
