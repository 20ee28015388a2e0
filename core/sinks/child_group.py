"""A shell command of ours with all that it starts: a process group, which ends as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
PERIOD = 0.02
"""Seconds between two looks at a process: not every kernel that runs us can wake us (pidfd_open)."""


async def look_until(true: Callable[[], bool]) -> None:
    """Look again and again until it is so."""
    while True:
        if true():
            return
        await asyncio.sleep(PERIOD)


class ChildGroup:
    """Fixed: the process that leads the group. Changing: whether it was reaped.

    It has a session of its own, so that Ctrl-C at the terminal reaches us and not it. A leader that has ended stays
    a zombie until we are done, for that keeps its number: a signal to the group never reaches somebody else.
    """

    def __init__(self, arguments: list[str], *, stdin: int) -> None:
        """Start it (OSError). What it prints goes to our standard error."""
        self._leader = subprocess.Popen(arguments, stdin=stdin, stdout=2, start_new_session=True)

    @property
    def number(self) -> int:
        """The number of the group."""
        return self._leader.pid

    @property
    def has_ended(self) -> bool:
        """Whether the leader has ended."""
        if self._leader.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    async def ended(self) -> None:
        """Return when the leader has ended."""
        await look_until(lambda: self.has_ended)

    def reap(self) -> int:
        """The exit status of the leader, which has ended; negative: the signal that ended it."""
        return self._leader.wait()

    async def end(self) -> None:
        """End every process of the group: SIGTERM, and after a time of grace SIGKILL. Never raises."""
        if self._leader.returncode is None:
            self._signal(signal.SIGTERM)
        elif not self._signal(0):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self.ended()
                self.reap()
                await look_until(lambda: not self._signal(0))
                return
        self._signal(signal.SIGKILL)
        await self.ended()
        self.reap()

    def _signal(self, number: int) -> bool:
        """Send a signal, 0 for none at all; whether there was anybody to take it."""
        try:
            os.killpg(self.number, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True  # somebody is there, who has become another user
        return True


def describe_status(status: int) -> str:
    """An exit status in words; a shell adds 128 to the number of the signal that ended its command."""
    number = -status if status < 0 else status - 128
    if number in signal.valid_signals():
        name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
        return f"ended by {name}" if status < 0 else f"exit status {status} ({name})"
    return f"exit status {status}"
