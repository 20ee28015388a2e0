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
    """Fixed: the process that leads the group. Changing: its status.

    It has a session of its own, so that Ctrl-C at the terminal reaches us and not it. A leader that has ended stays
    a zombie until end() or release(), for that keeps its number: a signal to the group never reaches somebody else.
    """

    def __init__(self, arguments: list[str], *, stdin: int) -> None:
        """Start it (OSError). What it prints goes to our standard error."""
        self._leader = subprocess.Popen(arguments, stdin=stdin, stdout=2, start_new_session=True)

    @property
    def number(self) -> int:
        """The number of the group."""
        return self._leader.pid

    @property
    def status(self) -> int | None:
        """The exit status of the leader, negative for the signal that ended it; None while it runs."""
        if self._leader.returncode is not None:
            return self._leader.returncode
        ended = os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    async def ended(self) -> None:
        """Return when the leader has ended."""
        await look_until(lambda: self.status is not None)

    def release(self) -> None:
        """Let the leader go, which has ended, and what it has left running."""
        self._leader.wait()

    async def end(self) -> None:
        """End every process of the group: SIGTERM, and after a time of grace SIGKILL. Never raises."""
        if self._leader.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self.ended()
                await look_until(lambda: not self._has_members)
        self._signal(signal.SIGKILL)
        await self.ended()
        self.release()

    @property
    def _has_members(self) -> bool:
        """Whether anything of the group still runs; dead processes that nobody has reaped do not."""
        return any(_runs_in(name, self.number) for name in os.listdir("/proc"))

    def _signal(self, number: int) -> None:
        # A member that has become another user is not ours to signal.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.number, number)


def _runs_in(process: str, group: int) -> bool:
    """Whether an entry of /proc is a process of this group that has not ended."""
    if not process.isdecimal():
        return False
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            state, _parent, its_group = file.read().rpartition(b")")[2].split()[:3]
    except OSError:
        return False
    return int(its_group) == group and state not in b"ZX"


def describe_status(status: int) -> str:
    """An exit status in words; a shell adds 128 to the number of the signal that ended its command."""
    number = -status if status < 0 else status - 128
    if number in signal.valid_signals():
        name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
        return f"ended by {name}" if status < 0 else f"exit status {status} ({name})"
    return f"exit status {status}"
