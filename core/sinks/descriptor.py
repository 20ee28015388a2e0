"""An open descriptor that somebody else gave us: written to, and closed; its durability is the giver's business."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence

from pybackup.core.device import Buffer
from pybackup.core.devices.blocking_calls import BlockingCalls
from pybackup.core.sinks import Sink
from pybackup.core.sinks.file import write_all
from pybackup.core.sinks.partial_file import target_failure
from pybackup.core.sinks.stream import StreamSink


class DescriptorSink:
    """Writes to a regular file in threads, to anything else without blocking. Fixed: the descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self.name = fd, name
        self._calls = BlockingCalls()
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._stream: Sink | None = None if is_file else StreamSink(fd, name)

    async def begin(self) -> None:
        """Get ready."""
        if self._stream is not None:
            await self._stream.begin()

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Append all bytes."""
        if self._stream is not None:
            await self._stream.write(buffers)
            return
        try:
            await self._calls.run(write_all, self._fd, buffers)
        except OSError as error:
            raise target_failure(self.name, error, "write") from error

    async def commit(self) -> None:
        """Close."""
        if self._stream is not None:
            await self._stream.commit()
            return
        fd, self._fd = self._fd, -1
        await self._calls.close()
        try:
            os.close(fd)
        except OSError as error:
            raise target_failure(self.name, error, "finish") from error

    async def abort(self) -> None:
        """Close; a second time, or after commit(), nothing happens."""
        if self._stream is not None:
            await self._stream.abort()
            return
        fd, self._fd = self._fd, -1
        await self._calls.close()
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
