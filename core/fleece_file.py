"""The fleecing file: a temporary file for old data that does not fit into memory, while a slow archive catches up.

It never has a name that could be left behind: it is created without one, or unlinked at once.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence

from bitarray.util import zeros

from .device import CLUSTER_SIZE, Buffer
from .devices.blocking_calls import BlockingCalls
from .devices.file_io import read_fully, write_fully
from .errors import TargetError
from .sinks.direct_write import AlignedWriter

DEFAULT_LIMIT = 16 << 30
"""Bytes: the file is sparse, so this costs nothing until it is used."""


class FleeceFile:
    """Room for runs of clusters, given out and taken back.

    Fixed: the descriptor and the limit. Changing, in the event loop only: which clusters of the file are taken.
    """

    def __init__(self, folder: str, limit: int = DEFAULT_LIMIT) -> None:
        """Create the file in ``folder`` (TargetError); it takes at most ``limit`` bytes."""
        try:
            with tempfile.TemporaryFile(prefix="pybackup-fleece-", dir=folder, buffering=0) as file:
                self._fd = os.dup(file.fileno())
        except OSError as error:
            raise TargetError(f"cannot create the fleecing file in {folder}: {error.strerror}") from error
        self._folder = folder
        self._taken = zeros(max(1, limit // CLUSTER_SIZE))
        self._calls = BlockingCalls()
        self._direct = AlignedWriter(self._fd)

    async def store(self, contents: Sequence[Buffer]) -> int | None:
        """Keep the bytes of all; their place, or None if there is no room: the limit is reached, or the disk is full.

        TargetError where the file cannot be written for another reason.
        """
        count = -(-sum(map(len, contents)) // CLUSTER_SIZE)
        place = self._taken.find(zeros(count))
        if place < 0:
            return None
        self._taken[place : place + count] = True
        stored = False
        try:
            await self._calls.run(self._write, place * CLUSTER_SIZE, contents)
            stored = True
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return None
            raise TargetError(f"cannot write the fleecing file in {self._folder}: {error.strerror}") from error
        finally:
            if not stored:
                self._taken[place : place + count] = False
        return place

    def _write(self, offset: int, contents: Sequence[Buffer]) -> None:
        """Write in one call, past the page cache if possible: putting it together would stop the guests for long."""
        buffers = [memoryview(content) for content in contents]
        if not self._direct.write_all_at(offset, buffers):
            done = os.pwritev(self._fd, buffers, offset)
            if done < sum(map(len, buffers)):
                write_fully(self._fd, offset + done, memoryview(b"".join(buffers))[done:])

    async def load(self, place: int, size: int) -> Buffer:
        """Read ``size`` bytes back and give their room away (TargetError)."""
        try:
            content = await self._calls.run(read_fully, self._fd, place * CLUSTER_SIZE, size)
        except OSError as error:
            raise TargetError(f"cannot read the fleecing file in {self._folder}: {error.strerror}") from error
        self._taken[place : place - (-size // CLUSTER_SIZE)] = False
        return content

    async def close(self) -> None:
        """Give the file back; a second time nothing happens."""
        await self._calls.close()
        self._direct.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
