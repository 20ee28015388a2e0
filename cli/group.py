"""The group of commands, loaded one by one as they are needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from pybackup.cli.main import COMMANDS
from pybackup.cli.version import VERSION

EXIT_CODES = {
    "0": "done",
    "1": "failed; for compare: the disks differ",
    "2": "wrong usage; nothing was changed",
    "3": "the source changed, or cannot be read in places",
    "4": "the archive is damaged, or is no archive",
    "5": "the target cannot be used: it exists, is full, too small, in use",
    "6": "busy: another program holds the lock",
    "129, 130, 143": "cancelled by SIGHUP, SIGINT, SIGTERM",
    "141": "whoever read the report has gone (SIGPIPE)",
}
"""The exit codes of every command."""

EPILOG = "\b\nExit codes, the same for every command:\n" + "\n".join(
    f"  {code:13}  {what}" for code, what in EXIT_CODES.items()
)

SIGPIPE_CODE = 141
"""Whoever read our output has gone: we end like a program that SIGPIPE ended, without a word."""


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


def _prepare_standard_streams() -> None:
    """Make descriptors 0, 1 and 2 ours, whatever the caller closed, and let no name stop a report.

    Else the next file opened would get the number, and what is meant for the standard output would land in it. A
    closed standard input or output stays one that fails.
    """
    for fd, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. Every failure becomes one sentence on stderr."""
    _prepare_standard_streams()
    code = _invoke(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        # What the report could not hold must not fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return SIGPIPE_CODE
        return code or _tell(f"cannot write the standard output: {error.strerror}", 1)
    return code


def _invoke(arguments: Sequence[str]) -> int:
    try:
        result: Any = group.main(args=list(arguments), prog_name="pybackup", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (BrokenPipeError, SystemExit):
        return SIGPIPE_CODE
    except (Exception, KeyboardInterrupt) as error:
        from pybackup.cli.failures import describe

        return _tell(*describe(error))


def _tell(sentence: str, code: int) -> int:
    click.echo(f"pybackup: {sentence}", err=True)
    return code
