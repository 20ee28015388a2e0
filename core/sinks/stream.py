"""A pipe, a FIFO, a terminal, /dev/stdout: bytes that are gone once they are written."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Sequence

from pybackup.core.device import Buffer
from pybackup.core.errors import TargetError
from pybackup.core.sinks.partial_file import target_failure


class StreamSink:
    """Writes to a descriptor that belongs to the sink from now on. Fixed: everything.

    The descriptor is made non-blocking where it can be, so that a slow reader never blocks a thread that cancelling
    would have to wait for.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self.name = fd, name
        self._was_blocking = True

    @classmethod
    def open(cls, path: str) -> StreamSink:
        """Open a FIFO or a character device for writing (TargetError)."""
        try:
            return cls(os.open(path, os.O_WRONLY | os.O_CLOEXEC), path)
        except OSError as error:
            raise target_failure(path, error, "open") from error

    @classmethod
    def stdout(cls) -> StreamSink:
        """The standard output of this process."""
        try:
            return cls(os.dup(1), "the standard output")
        except OSError as error:
            raise TargetError(f"the standard output cannot be written: {error.strerror}") from error

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    async def begin(self) -> None:
        """Refuse a terminal: an archive is not for reading."""
        if os.isatty(self._fd):
            raise TargetError("an archive is not written to a terminal; redirect the standard output")
        self._was_blocking = os.get_blocking(self._fd)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.set_blocking(self._fd, False)

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Pass on all bytes; waits while the reader is slow."""
        for buffer in buffers:
            view = memoryview(buffer)
            while len(view):
                try:
                    view = view[os.write(self._fd, view[: 1 << 20]) :]
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    raise target_failure(self.name, error, "write") from error

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_writer(self._fd, wake)
        try:
            await ready
        finally:
            loop.remove_writer(self._fd)

    async def commit(self) -> None:
        """Close the stream; a failure now is a failure."""
        try:
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.fsync(self._fd)
            self._restore()
            os.close(self._fd)
        except OSError as error:
            raise target_failure(self.name, error, "finish") from error

    async def abort(self) -> None:
        """Close the stream; what was written is written."""
        with contextlib.suppress(OSError):
            self._restore()
            os.close(self._fd)

    def _restore(self) -> None:
        # The flag belongs to the open file, which others (a shell's tee, the terminal) may share with us.
        os.set_blocking(self._fd, self._was_blocking)
