"""What a failure is to the user: an exit code and a sentence."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Sequence

import click

from pybackup.cli import debugging
from pybackup.cli.advice import with_advice
from pybackup.cli.command import UnforeseenError
from pybackup.cli.printable import say
from pybackup.cli.standard_streams import ReportError, forget_report
from pybackup.core.errors import ExitCode, PybackupError
from pybackup.formats.errors import FormatError

SIGPIPE_CODE = 141
"""Whoever read our output has gone: we end like a program that SIGPIPE ended, without a word."""

_FILES = "more files cannot be open at once: raise the limit (ulimit -n, LimitNOFILE= of a systemd unit)"
_PROCESSES = (
    "no more threads or processes can be started: raise the limit (ulimit -u, TasksMax= of a systemd unit, pids.max of"
    " a container), or free memory"
)
_MEMORY = "there is not enough memory"
_RESOURCES = {errno.EMFILE: _FILES, errno.ENFILE: _FILES, errno.EAGAIN: _PROCESSES, errno.ENOMEM: _MEMORY}


def describe(error: BaseException) -> tuple[str, int]:
    """(sentence, exit code) of what ended a command."""
    if isinstance(error, PybackupError):
        is_gone = isinstance(error, ReportError) and error.is_gone
        return with_advice(error), SIGPIPE_CODE if is_gone else int(error.exit_code)
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "cancelled", int(ExitCode.INTERRUPTED)
    if isinstance(error, FormatError):
        return str(error), int(ExitCode.USAGE)
    return _lacking(error) or _bug(error), int(ExitCode.FAILED)


def _lacking(error: BaseException) -> str | None:
    """What this process lacks, where that is why it failed."""
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return _PROCESSES
    if isinstance(error, FileNotFoundError) and error.filename is None and _folder_is_gone():
        return "the current folder does not exist any more: go to one that does"
    return _RESOURCES.get(error.errno or 0) if isinstance(error, OSError) else None


def _folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _bug(error: BaseException) -> str:
    """What nobody foresaw is told as that, and never as something else."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f", in {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    how = f"{debugging.VARIABLE}=1 shows all about it"
    return f"a failure that pybackup does not know, which is a bug of it: {what}{where}; {how}"


def tell(error: BaseException, arguments: Sequence[str]) -> int:
    """Print what ended a command, on stderr; the exit code."""
    if isinstance(error, UnforeseenError) and error.__cause__ is not None:
        error = error.__cause__
    sentence, code = describe(error)
    if isinstance(error, ReportError):
        forget_report()
    if code == SIGPIPE_CODE:
        return code
    if _wants_traceback(error, arguments):
        traceback.print_exception(error)
    say(f"pybackup: {sentence}", err=True)
    return code


def _wants_traceback(error: BaseException, arguments: Sequence[str]) -> bool:
    if debugging.is_asked_for():
        return True
    foreseen = isinstance(error, PybackupError | click.ClickException | click.Abort | KeyboardInterrupt | FormatError)
    asked = any(one == "--verbose" or re.fullmatch("-[a-z]*v[a-z]*", one) for one in arguments)
    return asked and not foreseen and _lacking(error) is None
