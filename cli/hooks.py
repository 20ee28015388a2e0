"""The commands that --on-success and --on-failure name."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping

from pybackup.core.errors import PybackupError
from pybackup.core.sinks.child_group import describe_status


class HookError(PybackupError):
    """A command that was to run after the backup failed."""


def run_hook(option: str, command: str, environment: Mapping[str, str]) -> None:
    """Run a command with the shell and wait for it (HookError). What it prints goes to our standard error.

    It has no standard input and no terminal, so it cannot ask anything. If we are interrupted, so is it.
    """
    given = {name: value.replace("\0", "") for name, value in environment.items()}
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
    try:
        status = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if status:
        raise HookError(f"the {option} command failed: {describe_status(status)}")
