"""A regular file, which appears under its name only when it is whole and durable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pybackup.core.device import Buffer
from pybackup.core.devices.blocking_calls import BlockingCalls
from pybackup.core.sinks.partial_file import PartialFile, target_failure

WRITEBACK_STEP = 16 << 20
"""After so many bytes the kernel is asked to begin writing them out, so that the final fsync has little left."""


def write_all(fd: int, buffers: Sequence[Buffer]) -> int:
    """Write every byte of every buffer; the number of bytes. Raises OSError."""
    total = 0
    for buffer in buffers:
        view = memoryview(buffer)
        while len(view):
            written = os.write(fd, view)
            total += written
            view = view[written:]
    return total


class FileSink:
    """Writes a file. Fixed: the path. Changing: the position, in bytes."""

    def __init__(self, path: str, *, replace: bool = False, executor: ThreadPoolExecutor | None = None) -> None:
        self._file = PartialFile(path, replace=replace)
        self._calls = BlockingCalls(executor)
        self._position = 0
        self._flushed = 0

    @property
    def name(self) -> str:
        """The path as the user gave it."""
        return self._file.path

    @property
    def partial_path(self) -> str:
        """Where the bytes lie until commit()."""
        return self._file.partial

    def fileno(self) -> int:
        """The descriptor of the temporary file, between begin() and the end."""
        return self._file.fd

    async def begin(self) -> None:
        """Create the temporary file."""
        await self._calls.run(self._file.open)

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers."""
        await self._calls.run(self._write, buffers)

    def _write(self, buffers: Sequence[Buffer]) -> None:
        try:
            self._position += write_all(self._file.fd, buffers)
            if self._position - self._flushed >= WRITEBACK_STEP:
                self._start_writeback()
        except OSError as error:
            raise target_failure(self.name, error, "write") from error

    def _start_writeback(self) -> None:
        # DONTNEED begins to write out dirty pages and drops those that are clean: of our own output, all the same.
        previous = max(0, self._flushed - WRITEBACK_STEP)
        os.posix_fadvise(self._file.fd, previous, self._position - previous, os.POSIX_FADV_DONTNEED)
        self._flushed = self._position

    async def commit(self) -> None:
        """Make the file durable and give it its name."""
        try:
            await self._calls.run(self._file.commit)
        finally:
            await self._calls.close()

    async def abort(self) -> None:
        """Remove the temporary file."""
        await self._calls.close()
        self._file.abort()
