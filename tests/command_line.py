"""Runs the real program, as a user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = (sys.executable, "-m", "pybackup.cli")


class Outcome(NamedTuple):
    """How a run ended. ``code`` as a shell tells it: 128 + number for a signal."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def pybackup(*arguments: str | Path, stdin: bytes | None = None, **options: Any) -> Outcome:
    """Run the program to its end."""
    given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    options.setdefault("stdout", subprocess.PIPE)
    done = subprocess.run([*PROGRAM, *map(str, arguments)], stderr=subprocess.PIPE, check=False, **given, **options)
    return Outcome(
        done.returncode if done.returncode >= 0 else 128 - done.returncode, done.stdout, done.stderr.decode()
    )


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the program."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        **options,
    )


def end(process: subprocess.Popen[bytes], number: signal.Signals | None = None) -> Outcome:
    """Send a signal and wait for the end."""
    if number is not None:
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return Outcome(process.returncode if process.returncode >= 0 else 128 - process.returncode, out, err.decode())


def wait_until(true: Callable[[], bool], what: str, processes: Sequence[subprocess.Popen[bytes]] = ()) -> None:
    """Wait for something that other processes do; an error when it does not come, or they end before."""
    deadline = time.monotonic() + 30
    while not true():
        ended = [process for process in processes if process.poll() is not None]
        if ended and not true():
            raise AssertionError(f"ended while waiting for {what}: {ended[0].communicate()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}")
        os.sched_yield()


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every name in a folder with the file's content, or None: to see that nothing changed."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}
