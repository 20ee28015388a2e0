"""Where a restored drive goes: a new sparse file, a disk that exists, or a stream.

A target takes writes in any order and is told about zeros; a new file need not write them, a disk that exists must.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from pybackup.core.device import BlockDevice, Buffer
from pybackup.core.errors import TargetError
from pybackup.core.sinks import Sink
from pybackup.core.sinks.partial_file import PartialFile
from pybackup.core.sinks.target_failure import target_failure
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.core.system.direct_write import DirectWriter
from pybackup.core.system.file_io import write_fully

WRITERS = 2
"""Threads that write one file: more wait for the same lock in the kernel."""
SMALL = 128 << 10
"""Bytes: what is less goes through the page cache, for a disk is waited for once instead of at every small piece."""
WRITE_SIZE = 512 << 10
"""Bytes joined for one write to a disk; of several writes at a time, only so much is in memory twice."""


Piece = tuple[int, Sequence[memoryview]]
"""Bytes of a drive: from an offset on the buffers, one after the other."""


def size_of(pieces: Sequence[Piece]) -> int:
    """Bytes in all pieces."""
    return sum(sum(map(len, buffers)) for _, buffers in pieces)


class RestoreTarget(Protocol):
    """One drive's destination.

    After begin(), also one that failed, either sync() and commit() are called, or abort(), also after a sync() or a
    commit() that failed. Failures: TargetError. Changing: ``left``, what a failed one has left, and what that holds, as
    a sentence.
    """

    left: str | None

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def wants_zeros(self) -> bool:
        """False where everything reads as zeros from the beginning."""
        ...

    @property
    def keeps_small_holes(self) -> bool:
        """Whether zeros within a cluster of data are better left out; else it is given whole clusters."""
        ...

    async def begin(self, size: int) -> None:
        """Get ready for a drive of ``size`` bytes."""
        ...

    async def write(self, pieces: Sequence[Piece]) -> None:
        """Write the pieces."""
        ...

    async def zeros(self, offset: int, length: int) -> None:
        """The range reads as zeros."""
        ...

    async def sync(self) -> None:
        """All is written: make it durable. What has no name to get is done after that."""
        ...

    async def commit(self) -> None:
        """Give it its name, where it gets one. It does not take long, and raises CancelledError only if it has none."""
        ...

    async def abort(self) -> None:
        """It failed: leave nothing that looks whole. Never raises."""
        ...


class NewFile:
    """A sparse file that gets its name when it is whole; a failed one is left as ``NAME.partial``.

    Changing: how many bytes were written to it, and whether all that it is to hold is there, durably.
    """

    wants_zeros = False
    keeps_small_holes = True

    def __init__(self, path: str, *, replace: bool, executor: ThreadPoolExecutor | None = None) -> None:
        self._file = PartialFile(path, replace=replace, keep_partial=True)
        self._calls = BlockingCalls(executor or ThreadPoolExecutor(WRITERS, thread_name_prefix="pybackup-restore"))
        self._writer: DirectWriter | None = None
        self._written = 0
        self._is_whole = False
        self.left: str | None = None

    @property
    def name(self) -> str:
        """The path."""
        return self._file.path

    async def begin(self, size: int) -> None:
        """Create the file in full length: one hole."""
        await self._calls.run(self._begin, size)

    def _begin(self, size: int) -> None:
        self._file.open()
        try:
            os.ftruncate(self._file.fd, size)
            self._writer = DirectWriter(self._file.fd)
        except OSError as error:
            raise target_failure(self.name, error, "create") from error

    async def write(self, pieces: Sequence[Piece]) -> None:
        """Write in a thread."""
        self._written += size_of(pieces)
        await self._calls.run(self._write, pieces)

    def _write(self, pieces: Sequence[Piece]) -> None:
        assert self._writer is not None
        try:
            for offset, buffers in pieces:
                if sum(map(len, buffers)) < SMALL:
                    write_fully(self._file.fd, offset, b"".join(buffers))
                else:
                    self._writer.write_at(offset, buffers)
        except OSError as error:
            raise target_failure(self.name, error, "write") from error

    async def zeros(self, offset: int, length: int) -> None:
        """Nothing to do: the file is a hole there."""

    async def sync(self) -> None:
        """fsync."""
        await self._calls.run(self._file.sync)
        self._is_whole = True

    async def commit(self) -> None:
        """Give it its name; quick, and no thread's (see FileSink)."""
        self._file.take_name()
        await self._close()

    async def _close(self) -> None:
        await self._calls.close()
        if self._writer is not None:
            self._writer.close()

    async def abort(self) -> None:
        """Leave what there is as ``NAME.partial``; nothing where nothing was written."""
        await self._close()
        self._file.abort(worth_keeping=bool(self._written))
        self.left = what_is_left(self._file, self._written, is_whole=self._is_whole)


def what_is_left(file: PartialFile, written: int, *, is_whole: bool) -> str | None:
    """What there is to say of a failed file; ``written`` in bytes."""
    if file.kept is None:
        return None
    if is_whole:  # what failed is its name, or another drive
        return f"{file.kept} holds all that was to be restored"
    return f"{file.kept} is what was restored until then ({written:,} bytes were written), and not the whole disk"


class ExistingDisk:
    """A disk that has contents already: zeros are written where the archive has zeros."""

    wants_zeros = True
    keeps_small_holes = False

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._written = 0
        self._is_whole = False
        self.left: str | None = None

    @property
    def name(self) -> str:
        """The device's name."""
        return self._device.name

    async def begin(self, size: int) -> None:
        """Refuse a disk that is too small."""
        if self._device.size < size:
            await self._device.close()
            raise TargetError(f"{self.name} is too small: it has {self._device.size:,} bytes, the drive has {size:,}")

    async def write(self, pieces: Sequence[Piece]) -> None:
        """Write."""
        try:
            for offset, buffers in pieces:
                for content in joined(buffers, WRITE_SIZE):
                    self._written += len(content)
                    await self._device.pwrite(offset, content)
                    offset += len(content)
        except OSError as error:
            raise target_failure(self.name, error, "write") from error

    async def zeros(self, offset: int, length: int) -> None:
        """Write zeros, or punch a hole."""
        self._written += length
        try:
            for at in range(offset, offset + length, 1 << 30):
                await self._device.write_zeroes(at, min(1 << 30, offset + length - at))
        except OSError as error:
            raise target_failure(self.name, error, "write") from error

    async def sync(self) -> None:
        """Flush, and close."""
        try:
            await self._device.flush()
            await self._device.close()
        except OSError as error:
            raise target_failure(self.name, error, "finish") from error
        self._is_whole = True

    async def commit(self) -> None:
        """Nothing is left to do."""

    async def abort(self) -> None:
        """Close; what was overwritten is overwritten."""
        with contextlib.suppress(OSError):
            await self._device.close()
        if self._is_whole:
            self.left = f"{self.name} is complete"
        elif self._written:
            self.left = f"{self.name} is overwritten in part, and holds neither the old disk nor the whole new one"


class Stream:
    """A stream, which takes bytes in order only: what comes too early waits in a temporary file.

    Our own archives of disks at rest are in order, so nothing waits. Changing: the position, what waits; the lock
    keeps writes that are under way together in the order in which they came.
    """

    wants_zeros = True
    keeps_small_holes = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._at = 0
        self._size = 0
        self._early: dict[int, int] = {}
        self._spool: int | None = None
        self._turn = asyncio.Lock()
        self.left: str | None = None

    @property
    def name(self) -> str:
        """The sink's name."""
        return self._sink.name

    async def begin(self, size: int) -> None:
        """Open the sink."""
        self._size = size
        await self._sink.begin()

    async def write(self, pieces: Sequence[Piece]) -> None:
        """Pass on what is next, keep the rest."""
        async with self._turn:
            for offset, buffers in pieces:
                if offset == self._at:
                    await self._pass_on(buffers)
                else:
                    self._keep(offset, b"".join(buffers))
                await self._pass_on_early()

    async def zeros(self, offset: int, length: int) -> None:
        """Pass on zeros, or remember them."""
        async with self._turn:
            if offset != self._at:
                self._early[offset] = -length
                return
            await self._pass_on_zeros(length)
            await self._pass_on_early()

    def _keep(self, offset: int, content: bytes) -> None:
        try:
            if self._spool is None:
                with tempfile.TemporaryFile(prefix="pybackup-") as file:
                    self._spool = os.dup(file.fileno())
            write_fully(self._spool, offset, content)
        except OSError as error:
            raise target_failure("the temporary file", error, "write") from error
        self._early[offset] = len(content)

    async def _pass_on(self, buffers: Sequence[Buffer]) -> None:
        await self._sink.write(buffers)
        self._at += sum(map(len, buffers))

    async def _pass_on_zeros(self, length: int) -> None:
        block = bytes(min(length, 1 << 20))
        for at in range(0, length, len(block)):
            await self._pass_on([memoryview(block)[: min(len(block), length - at)]])

    async def _pass_on_early(self) -> None:
        while (length := self._early.pop(self._at, None)) is not None:
            if length < 0:
                await self._pass_on_zeros(-length)
            elif self._spool is not None:
                await self._pass_on([os.pread(self._spool, length, self._at)])

    async def commit(self) -> None:
        """Nothing is left to do."""

    async def sync(self) -> None:
        """Fill lost places with zeros up to the end, and close."""
        while self._at < self._size:
            following = min((offset for offset in self._early if offset > self._at), default=self._size)
            await self._pass_on_zeros(following - self._at)
            await self._pass_on_early()
        self._drop_spool()
        await self._sink.commit()

    async def abort(self) -> None:
        """Close."""
        self._drop_spool()
        await self._sink.abort()

    def _drop_spool(self) -> None:
        if self._spool is not None:
            os.close(self._spool)
            self._spool = None


def joined(buffers: Sequence[memoryview], most: int) -> Iterator[Buffer]:
    """The buffers' bytes in as few pieces as can be, joined where that makes at most ``most`` bytes."""
    waiting: list[memoryview] = []
    size = 0
    for buffer in buffers:
        if waiting and size + len(buffer) > most:
            yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
            waiting, size = [], 0
        waiting.append(buffer)
        size += len(buffer)
    if waiting:
        yield waiting[0] if len(waiting) == 1 else b"".join(waiting)


def cut(buffers: list[memoryview], excess: int) -> list[memoryview]:
    """The buffers without their last ``excess`` bytes, which lie behind the end of a drive."""
    while excess > 0 and buffers:
        last = buffers.pop()
        if len(last) > excess:
            buffers.append(last[: len(last) - excess])
        excess -= len(last)
    return buffers
