"""A regular file, which appears under its name only when it is whole and durable.

Written past the page cache where the filesystem can (see direct_write.py), in large aligned pieces that are filled
here and written by a thread meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pybackup.core.device import Buffer
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.core.system.direct_write import BUFFER, AlignedWriter
from pybackup.core.tasks import ended

from .partial_file import PartialFile
from .replaced import ARCHIVES
from .target_failure import target_failure

PIECES_UNDER_WAY = 2
"""Pieces that are being written while the next one is filled."""


class FileSink:
    """Writes a file.

    Fixed: the path, and the size of a piece. Changing, in the event loop: the open piece, and those under way in order.

    ``_written``: bytes of the file in front of the open piece; ``_used``: bytes in that.
    """

    def __init__(
        self,
        path: str,
        *,
        replace: bool = False,
        folders_from: str | None = None,
        executor: ThreadPoolExecutor | None = None,
        piece: int = BUFFER,
    ) -> None:
        """``replace``: an archive that is there, or an empty file; nothing else is ever replaced.

        ``folders_from``: a folder; those below it that the path needs are made. ``piece``: bytes that are written at
        once, whole pages.
        """
        self._file = PartialFile(path, replace=replace, replaced=ARCHIVES, folders_from=folders_from)
        self._calls = BlockingCalls(executor, threads=1)
        self._writer: AlignedWriter | None = None
        self._piece = piece
        self._open = mmap.mmap(-1, piece)
        self._free: list[mmap.mmap] = []
        self._under_way: deque[asyncio.Task[mmap.mmap]] = deque()
        self._written = self._used = 0

    @property
    def name(self) -> str:
        """The path as the user gave it."""
        return self._file.path

    @property
    def partial_path(self) -> str:
        """By which path this process finds the bytes until commit(); all of them after flush()."""
        return self._file.own_path

    def fileno(self) -> int:
        """The descriptor of the temporary file, between begin() and the end."""
        return self._file.fd

    async def begin(self) -> None:
        """Create the temporary file."""
        await self._calls.run(self._file.open)
        self._writer = AlignedWriter(self._file.fd)

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers; a failure may be told by a later call."""
        for buffer in buffers:
            rest = memoryview(buffer)
            while len(rest):
                part = rest[: self._piece - self._used]
                self._open[self._used : self._used + len(part)] = part
                self._used += len(part)
                rest = rest[len(part) :]
                if self._used == self._piece:
                    await self._pass_on()

    async def _pass_on(self) -> None:
        """Have the open piece written, and open another."""
        piece, offset, size = self._open, self._written, self._used
        self._written, self._used = offset + size, 0
        self._open = self._free.pop() if self._free else mmap.mmap(-1, self._piece)
        self._under_way.append(asyncio.create_task(self._calls.run(self._write_out, piece, offset, size)))
        await self._settle(PIECES_UNDER_WAY)

    def _write_out(self, piece: mmap.mmap, offset: int, size: int) -> mmap.mmap:
        assert self._writer is not None
        try:
            self._writer.write_at(offset, memoryview(piece)[:size])
        except OSError as error:
            raise target_failure(self.name, error, "write") from error
        return piece

    async def _settle(self, most: int) -> None:
        while len(self._under_way) > most:
            self._free.append(await asyncio.shield(self._under_way[0]))
            self._under_way.popleft()

    async def flush(self) -> None:
        """Return when all that was written so far can be read at partial_path; for the end, or nearly."""
        if self._used:
            await self._pass_on()
        await self._settle(0)

    async def commit(self) -> None:
        """Make the file durable, and give it its name.

        The last is quick, and no thread's: so nothing can come between it and what the event loop learns of it.
        """
        await self.flush()
        await self._calls.run(self._file.sync)
        self._file.take_name()
        await self._end()

    async def abort(self) -> None:
        """Remove the temporary file."""
        await ended(self._under_way)
        self._under_way.clear()
        await self._end()
        self._file.abort()

    async def _end(self) -> None:
        await self._calls.close()
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
