"""The commands that --on-success and --on-failure name."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping

from pybackup.cli import signals
from pybackup.core.errors import CancelledError, PybackupError
from pybackup.core.system.child_group import describe_status


class HookError(PybackupError):
    """A command that was to run after the backup failed."""


def run_hook(option: str, command: str, environment: Mapping[str, str]) -> None:
    """Run a command with the shell and wait for it (HookError). What it prints goes to our standard error.

    It has no standard input and no terminal, so it cannot ask anything. A signal that cancels us ends it
    (CancelledError).
    """
    given = {name: value.replace("\0", "") for name, value in environment.items()}
    noted = _Noted()
    with signals.taken_by(noted.take):
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env={**os.environ, **given},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise HookError(f"the {option} command cannot be started: {error}") from error
        noted.pass_on_to(process.pid)
        status = process.wait()
        noted.pass_on_to(None)
    if noted.numbers:
        raise CancelledError("cancelled", noted.numbers[0])
    if status:
        raise HookError(f"the {option} command failed: {describe_status(status)}")


class _Noted:
    """The signals that came meanwhile. They are no exceptions here, which could lose us a command just started."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._group: int | None = None

    def take(self, number: int, _frame: object = None) -> None:
        """A first signal ends the command, a second one kills it."""
        self.numbers.append(number)
        if self._group is not None:
            self._end(self._group)

    def pass_on_to(self, group: int | None) -> None:
        """From now on signals end this group of processes, those that came already too."""
        self._group = group
        if self.numbers and group is not None:
            self._end(group)

    def _end(self, group: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGTERM if len(self.numbers) == 1 else signal.SIGKILL)
