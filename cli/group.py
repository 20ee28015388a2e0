"""The group of commands, loaded one by one as they are needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click
from pybackup.cli.main import COMMANDS
from pybackup.cli.version import VERSION

EXIT_CODES = """\b
Exit codes, the same for every command:
  0  done
  1  failed
  2  wrong usage
  3  the source changed, or cannot be read in places
  4  the archive is damaged, or no archive
  5  the target cannot be used: it exists, is full, too small, in use
  6  busy: somebody else holds the lock
  130, 143  cancelled by SIGINT (or SIGHUP: 129), SIGTERM"""


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


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="pybackup", message="%(prog)s %(version)s")
def group() -> None:
    """Back up disk images, also while they are in use.

    An archive is a Proxmox VMA inside seekable zstd: `zstd -d` and Proxmox read it, and pybackup reads any part of it.
    """


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. Every failure becomes one sentence on stderr."""
    try:
        result: Any = group.main(args=list(arguments), prog_name="pybackup", standalone_mode=False)
        return _flush_stdout(result if isinstance(result, int) else 0)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _tell("cancelled", 130)
    except BrokenPipeError:
        return _quiet_pipe()
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    from pybackup.core.errors import PybackupError
    from pybackup.formats.errors import FormatError

    if isinstance(error, PybackupError):
        return _tell(str(error), int(error.exit_code))
    if isinstance(error, FormatError):
        return _tell(str(error), 2)
    if isinstance(error, OSError):
        return _tell(str(error), 1)
    raise error


def _tell(sentence: str, code: int) -> int:
    click.echo(f"pybackup: {sentence}", err=True)
    return code


def _flush_stdout(code: int) -> int:
    """A report that did not reach stdout is a failure too."""
    sys.stdout.flush()
    return code


def _quiet_pipe() -> int:
    """Whoever read our output has gone: end like a program that SIGPIPE ended."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141
