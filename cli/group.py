"""The group of commands, loaded one by one as they are needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from pybackup.cli import standard_streams
from pybackup.cli.main import COMMANDS
from pybackup.cli.signals import end_with
from pybackup.cli.version import VERSION

EXIT_CODES = {
    "0": "done",
    "1": "failed; for compare: the disks differ",
    "2": "wrong usage; nothing was changed",
    "3": "the source cannot be opened or read, or it changed",
    "4": "the archive cannot be opened, is damaged, or is none",
    "5": "the target cannot be written: it exists, is full, too small, in use",
    "6": "busy: another program holds the lock",
    "7": "the archive is encrypted, and no identity that was given opens it",
    "129, 130, 143": "cancelled by SIGHUP, SIGINT, SIGTERM",
    "141": "whoever read the report has gone (SIGPIPE)",
}
"""The exit codes of every command."""

EPILOG = "\b\nExit codes, the same for every command:\n" + "\n".join(
    f"  {code:13}  {what}" for code, what in EXIT_CODES.items()
)


_MEANT = {
    "backup": "run",
    "create": "run",
    "save": "run",
    "dump": "run",
    "copy": "run",
    "snapshot": "run",
    "ls": "list",
    "snapshots": "list",
    "history": "list",
    "forget": "prune",
    "purge": "prune",
    "expire": "prune",
    "clean": "prune",
    "show": "info",
    "inspect": "info",
    "stat": "info",
    "map": "info",
    "check": "verify",
    "test": "verify",
    "validate": "verify",
    "scrub": "verify",
    "fsck": "verify",
    "extract": "restore",
    "recover": "restore",
    "unpack": "restore",
    "export": "restore",
    "convert": "restore",
    "get": "restore",
    "diff": "compare",
    "cmp": "compare",
    "mount": "serve",
    "nbd": "serve",
    "server": "serve",
    "daemon": "serve",
    "control": "ctl",
    "status": "ctl",
    "speed": "ctl",
    "pause": "ctl",
    "resume": "ctl",
    "cancel": "ctl",
    "quit": "ctl",
    "configuration": "config",
    "cat": "config",
    "completions": "completion",
    "man": "help",
    "usage": "help",
}
"""What other programs call our commands."""


class LazyGroup(click.Group):
    """Knows its commands by name, and loads the module of one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"pybackup.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As Click does it; a command that others have is told by the name that it has here."""
        name = args[0]
        if name in COMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        alike = [_MEANT[name]] if name in _MEANT else get_close_matches(name, COMMANDS, 1)
        advice = f"did you mean `pybackup {alike[0]}`?" if alike else "`pybackup help` lists the commands"
        raise click.UsageError(f"There is no command {name!r}: {advice}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="pybackup", message="%(prog)s %(version)s")
def group() -> None:
    """Back up disk images, also while they are in use.

    An archive is a Proxmox VMA inside seekable zstd: `zstd -d` and Proxmox read it, and pybackup reads any part of it.
    """


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. Every failure becomes one sentence on stderr."""
    standard_streams.prepare()
    code = _invoke(arguments)
    end_with(code)
    return code


def _invoke(arguments: Sequence[str]) -> int:
    try:
        if "_PYBACKUP_COMPLETE" in os.environ:
            from pybackup.cli.shell_completion import register

            register()
        result: Any = group.main(args=list(arguments), prog_name="pybackup", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (Exception, KeyboardInterrupt) as error:
        from pybackup.cli.failures import tell

        return tell(error, arguments)
