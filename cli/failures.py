"""What a failure is to the user: an exit code and a sentence."""

from __future__ import annotations

import click

from pybackup.cli.group import SIGPIPE_CODE
from pybackup.core.errors import ExitCode, PybackupError
from pybackup.formats.errors import FormatError


def describe(error: BaseException) -> tuple[str, int]:
    """(sentence, exit code) of what ended a command; an error that nobody foresaw is raised again."""
    if isinstance(error, PybackupError):
        return str(error), int(error.exit_code)
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "cancelled", int(ExitCode.INTERRUPTED)
    if isinstance(error, BrokenPipeError | SystemExit):
        # Click answers a broken pipe with SystemExit.
        return "whoever read the report has gone", SIGPIPE_CODE
    if isinstance(error, FormatError):
        return str(error), int(ExitCode.USAGE)
    if isinstance(error, OSError) and error.filename is None:
        # Sources, archives and targets have errors of their own: what is left is the report.
        return f"cannot write the standard output: {error.strerror}", int(ExitCode.FAILED)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}", int(ExitCode.FAILED)
    raise error
