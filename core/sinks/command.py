"""The standard input of a command: its failure is ours, and what it got of a failed backup it cannot take for whole."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import struct
import termios
from collections.abc import Sequence

from pybackup.core.device import Buffer
from pybackup.core.errors import TargetError
from pybackup.core.system.child_group import GRACE, PERIOD, ChildGroup, describe_status
from pybackup.core.system.death_watch import DeathWatch

from .stream import pass_on
from .target_failure import target_failure

PIPE_SIZE = 1 << 20
"""Bytes that the pipe holds, where we may have so many: the command is woken less often."""

_START = 'read -r go && exec /bin/sh -c "$1"'
"""The command starts with the first line of its input, which is ours to send when its death is arranged for."""


class CommandSink:
    """Fixed: the command. Changing: its processes, and our end of the pipe to it.

    Whatever ends us, the command is killed before its input ends; only commit() lets it read to the end.
    """

    def __init__(self, command: str) -> None:
        """``command``: for /bin/sh."""
        self._command = command.strip()
        self.name = f"the command {self._command!r}"
        self._pipe = -1
        self._watch: DeathWatch | None = None
        self._group: ChildGroup | None = None

    async def begin(self) -> None:
        """Start the command (TargetError)."""
        theirs, self._pipe = os.pipe()
        try:
            os.set_blocking(self._pipe, False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            self._watch = DeathWatch(self._pipe)
            self._group = ChildGroup(["/bin/sh", "-c", _START, "sh", self._command], stdin=theirs)
            self._watch.guard(self._group.number)
            os.write(self._pipe, b"\n")
        except OSError as error:
            raise target_failure(self.name, error, "start") from error
        finally:
            os.close(theirs)

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Pass on all bytes; waits while the command is slow. TargetError when it has ended."""
        assert self._group is not None
        if self._group.status is not None:
            raise await self._left_early()
        try:
            await pass_on(self._pipe, buffers)
        except BrokenPipeError:
            raise await self._left_early() from None
        except OSError as error:
            raise target_failure(self.name, error, "write to") from error

    async def commit(self) -> None:
        """End the command's input and wait for its end: it must have read all, and its exit status be 0."""
        assert self._group is not None
        while (unread := self._unread()) is not None:
            if unread:
                raise await self._left_early()
            await asyncio.sleep(PERIOD)
        await self._end_input()
        try:
            await self._group.ended()
        except asyncio.CancelledError:
            if self._group.status != 0:
                raise
        status = self._group.status
        if status:
            raise TargetError(f"{self.name} failed: {describe_status(status)}")
        self._group.release()

    def _unread(self) -> bool | None:
        """None when the command has read everything; else whether it never will."""
        poll = select.poll()
        poll.register(self._pipe, 0)
        is_gone = bool(poll.poll(0))  # asked first: then what is left in the pipe stays
        (unread,) = struct.unpack("i", fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4)))
        return is_gone if unread else None

    async def _left_early(self) -> TargetError:
        assert self._group is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._group.ended()
        status = self._group.status
        if status is None:
            return TargetError(f"{self.name} closed its input before it had read everything")
        return TargetError(f"{self.name} ended before it had read everything: {describe_status(status)}")

    async def abort(self) -> None:
        """Kill the command, and only then end its input."""
        if self._group is not None:
            await self._group.end()
        await self._end_input()

    async def _end_input(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.dismiss()
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            os.close(pipe)
