"""A disk that comes as a stream, such as the standard input: it can be read once, from its beginning to its end."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence

from pybackup.core.device import BlockStatus, Buffer
from pybackup.core.errors import Advice, SourceError
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.core.system.pipe_reader import PipeReader
from pybackup.core.tasks import ended

from .read_only import ReadOnlyDevice


class SequentialDevice(ReadOnlyDevice):
    """Reads a descriptor in order. Fixed: the size in bytes, which the user must tell.

    Changing: the position, and that a cancelled read ends all reading: what it had read is lost.
    """

    def __init__(self, fd: int, size: int, name: str) -> None:
        """``fd`` stays open when the device is closed."""
        self.size, self.name = size, name
        self._pipe = PipeReader(fd)
        self._at = 0
        self._turn = asyncio.Lock()
        self._calls = BlockingCalls()
        self._closed = False

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read on; reads must come in order (ESPIPE).

        SourceError when the stream ends before the disk does, or has more. The read that comes to the disk's end waits
        for the stream's, too.
        """
        async with self._turn:
            if offset != self._at:
                raise OSError(errno.ESPIPE, "a stream can only be read in order", self.name)
            content = await self._run(self._read, length)
            self._at += len(content)
            if len(content) < length:
                sentence = f"{self.name} ended after {self._at:,} bytes"
                raise SourceError(sentence, advice=Advice.SIZE_SAYS, about=f"{self.size:,}")
            if self._at == self.size and await self._run(self._read, 1):
                raise SourceError(f"{self.name} has more than the {self.size:,} bytes", advice=Advice.THAT_SIZE_SAYS)
        return content

    async def _run(self, read: Callable[[int], bytes], length: int) -> bytes:
        """Read in a thread, which is told to stop when we are cancelled: the next byte may never come."""
        reading = asyncio.create_task(self._calls.run(read, length))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            self._pipe.stop()
            await ended([reading])
            raise

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._pipe.read(min(length, 1 << 20))
            if not part:
                break
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """All data, for all that is known."""
        return [BlockStatus(offset, length, zero=False, hole=False)]

    async def close(self) -> None:
        """End the reading thread; a second close does nothing."""
        if not self._closed:
            self._closed = True
            self._pipe.stop()
            await self._calls.close()
            self._pipe.close()
