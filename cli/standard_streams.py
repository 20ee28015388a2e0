"""The standard streams: ours, whatever the caller closed, and with failures that cannot be mistaken for others'."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

from pybackup.core.errors import PybackupError


class ReportError(PybackupError):
    """The standard output cannot be written; ``is_gone``: whoever read it is not there any more."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write the standard output: {error.strerror}")
        self.is_gone = error.errno == errno.EPIPE


class _Report(io.FileIO):
    """The standard output."""

    def write(self, content: object, /) -> int:
        """As much as can be written now (ReportError)."""
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError as error:
            raise ReportError(error) from error


class _Messages(io.FileIO):
    """The standard error: what nobody can read is no reason to fail."""

    def write(self, content: object, /) -> int:
        """As much as can be written now; all of it where nothing can be."""
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError:
            return len(memoryview(content))  # type: ignore[arg-type]


def prepare() -> None:
    """Make descriptors 0, 1 and 2 ours, and let no name stop a report.

    Else the next file opened would get the number, and what is meant for the standard output would land in it. A
    closed standard input or output stays one that fails.
    """
    for fd, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(_Report(1, "wb", closefd=False), sys.stdout, False)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(_Messages(2, "wb", closefd=False), sys.stderr, True)


def _stream(raw: io.FileIO, before: TextIO | None, by_lines: bool) -> TextIO:
    """Text over ``raw``, encoded as before; what cannot be encoded, a drive's name perhaps, is written as \\xNN."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=by_lines or raw.isatty(),
    )


def forget_report() -> None:
    """What the report could not hold must not fail once more when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
