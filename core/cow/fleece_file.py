"""The fleecing file: a temporary file for old data that does not fit into memory, while a slow archive catches up.

It never has a name that could be left behind: it is created without one, or unlinked at once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from bitarray.util import zeros

from pybackup.core.device import CLUSTER_SIZE, Buffer
from pybackup.core.errors import Advice, TargetError
from pybackup.core.system import fallocate
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.core.system.direct_write import AlignedWriter
from pybackup.core.system.file_io import read_fully, write_fully
from pybackup.core.system.in_memory import lies_in_memory

RESERVE = 256 << 20
"""Bytes that stay free in the folder's filesystem, or a tenth of it where that is less: it is others' as well."""
_log = logging.getLogger(__name__)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FleeceFile:
    """Room for runs of clusters, given out and taken back.

    Fixed: the descriptor and the limit. Changing, in the event loop only: which clusters of the file are taken, and
    below which one all are.
    """

    def __init__(self, folder: str, limit: int) -> None:
        """Create the file in ``folder`` (TargetError); it takes at most ``limit`` bytes.

        It is sparse, so a limit costs nothing until it is used.
        """
        try:
            with tempfile.TemporaryFile(prefix="pybackup-fleece-", dir=folder, buffering=0) as file:
                self._fd = os.dup(file.fileno())
        except OSError as error:
            raise TargetError(f"cannot create the fleecing file in {folder}: {error.strerror}") from error
        self._folder = folder
        self._taken = zeros(max(1, limit // CLUSTER_SIZE))
        self._first_free = 0
        self._calls = BlockingCalls()
        self._direct = AlignedWriter(self._fd)

    @property
    def in_memory(self) -> bool:
        """Whether the file lies on a filesystem in memory, which is what it is to save."""
        return lies_in_memory(self._fd)

    async def store(self, contents: Sequence[Buffer]) -> int | None:
        """Keep the bytes of all; their place, or None if there is no room: the limit is reached, or the disk is full
        but for the reserve.

        TargetError where the file cannot be written for another reason.
        """
        count = -(-sum(map(len, contents)) // CLUSTER_SIZE)
        self._first_free = self._taken.find(False, self._first_free)
        if self._first_free < 0:
            self._first_free = len(self._taken)
        place = self._taken.find(zeros(count), self._first_free)
        if place < 0:
            return None
        self._taken[place : place + count] = True
        stored = False
        try:
            stored = await self._calls.run(self._write, place * CLUSTER_SIZE, contents)
        except OSError as error:
            if error.errno in _NO_ROOM:
                return None
            raise TargetError(f"cannot write the fleecing file in {self._folder}: {error.strerror}") from error
        finally:
            if not stored:
                self._give_away(place, count)
        return place if stored else None

    def _give_away(self, place: int, count: int) -> None:
        self._taken[place : place + count] = False
        self._first_free = min(self._first_free, place)

    def _write(self, offset: int, contents: Sequence[Buffer]) -> bool:
        """Write in one call, past the page cache if possible: putting it together would stop the guests for long.

        False, and nothing written, where that would take of the reserve.
        """
        buffers = [memoryview(content) for content in contents]
        if offset + sum(map(len, buffers)) > os.fstat(self._fd).st_size and not self._leaves_reserve(buffers):
            return False
        try:
            self._write_all(offset, buffers)
        except OSError as error:
            if error.errno in _NO_ROOM:
                # What was written all the same is the last that a full disk had.
                with contextlib.suppress(OSError):
                    fallocate.punch_hole(self._fd, offset, sum(map(len, buffers)))
            raise
        return True

    def _leaves_reserve(self, buffers: Sequence[memoryview]) -> bool:
        room = os.fstatvfs(self._fd)
        reserve = min(RESERVE, room.f_blocks * room.f_frsize // 10)
        return room.f_bavail * room.f_frsize - sum(map(len, buffers)) >= reserve

    def _write_all(self, offset: int, buffers: Sequence[memoryview]) -> None:
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
        self._give_away(place, -(-size // CLUSTER_SIZE))
        return content

    async def close(self) -> None:
        """Give the file back; a second time nothing happens."""
        await self._calls.close()
        self._direct.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class FleecePlace:
    """Where old data is fleeced into: a folder, and at most how many bytes (None: as many as there is room for).

    ``is_asked_for``: by the user, so without it there is no backup; else there is one with memory alone.
    """

    folder: str
    limit: int | None = None
    is_asked_for: bool = True

    def open(self, most: int) -> FleeceFile | None:
        """The file, which never needs more than ``most`` bytes; where there can be none, TargetError or None."""
        try:
            return FleeceFile(self.folder, most if self.limit is None else self.limit)
        except TargetError as error:
            if self.is_asked_for:
                raise
            _log.warning("%s; this backup's old data waits in memory alone", error)
            return None

    async def check(self) -> TargetError | None:
        """Try it out: what the user should know where there will be no fleecing."""
        try:
            file = FleeceFile(self.folder, CLUSTER_SIZE)
        except TargetError as error:
            if self.is_asked_for:
                return TargetError(f"{error}; backups will fail until it can be used")
            why = str(error)
        else:
            in_memory = file.in_memory
            await file.close()
            if self.is_asked_for or not in_memory:
                return None
            why = f"{self.folder} is in memory itself"
        return TargetError(f"{why}; old data waits in memory alone", advice=Advice.FLEECE_ANYWHERE)
