"""Doubles that behave as badly as a disk, a fleecing file and a sink may: slow, torn, out of order, and failing.

All of it is drawn from one random.Random, so that a seed repeats it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from pybackup.core.archive.intake import Intake, Piece, Prepared
from pybackup.core.device import CLUSTER_SIZE, BlockStatus, Buffer
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.errors import TargetError, TargetFullError
from pybackup.formats.cluster_index import DriveCounts

T = TypeVar("T")


@dataclass
class Weather:
    """How bad it is: probabilities of one operation each, and what went wrong so far."""

    random: Random
    read_errors: float = 0.0
    write_errors: float = 0.0
    sink_errors: float = 0.0
    fleece_errors: float = 0.0
    slow: float = 0.0
    faults: int = 0

    async def wait(self) -> None:
        """Let others go first: not at all, a few turns of the loop, or seconds."""
        if self.random.random() < self.slow:
            await asyncio.sleep(self.random.choice([0.001, 0.01, 0.3, 2.0]))
        for _ in range(self.random.choice([0, 0, 1, 1, 2, 3, 5, 9])):
            await asyncio.sleep(0)

    def strikes(self, probability: float) -> bool:
        """Whether this operation fails."""
        struck = self.random.random() < probability
        self.faults += struck
        return struck


async def to_its_end(work: Awaitable[T]) -> T:
    """Like a thread that makes a system call: it goes on when its waiter is cancelled, and is waited for."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()
        raise


class WildDevice:
    """A disk in memory that reads and writes in two halves, with other work between, and fails now and then.

    A write that fails has changed nothing. ``reads`` in flight are counted in bytes, ``most_read`` is their peak.
    """

    def __init__(self, data: bytes, weather: Weather, name: str) -> None:
        self.disk = MemoryDevice(data, name)
        self.weather = weather
        self.size, self.name, self.read_only = len(data), name, False

    async def pread(self, offset: int, length: int) -> Buffer:
        return await to_its_end(self._read(offset, length))

    async def _read(self, offset: int, length: int) -> Buffer:
        await self.weather.wait()
        if self.weather.strikes(self.weather.read_errors):
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        half = self.weather.random.randint(0, length)
        first = self.disk.read_now(offset, half)
        await self.weather.wait()
        return bytearray(first + self.disk.read_now(offset + half, length - half))

    async def pwrite(self, offset: int, data: Buffer) -> None:
        await to_its_end(self._write(offset, bytes(data)))

    async def _write(self, offset: int, data: bytes) -> None:
        await self.weather.wait()
        if self.weather.strikes(self.weather.write_errors):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        half = self.weather.random.randint(0, len(data))
        self.disk.write_now(offset, data[:half])
        await self.weather.wait()
        self.disk.write_now(offset + half, data[half:])

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        await to_its_end(self._write(offset, bytes(length)))

    async def discard(self, offset: int, length: int) -> None:
        await to_its_end(self._write(offset, bytes(length)))

    async def flush(self) -> None:
        await self.weather.wait()

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """The truth, but cut short and split anywhere, with zeros called data as it pleases."""
        await self.weather.wait()
        if self.weather.strikes(self.weather.read_errors):
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        draw = self.weather.random
        length = draw.choice([length, draw.randint(1, length), min(length, draw.randint(1, 2 * CLUSTER_SIZE))])
        out = []
        for extent in await self.disk.extents(offset, length):
            cuts = sorted(
                {0, extent.length, *(draw.randrange(extent.length) for _ in range(draw.choice([0, 0, 1, 3])))}
            )
            for start, end in itertools.pairwise(cuts):
                zero = extent.zero and draw.random() < 0.8
                out.append(BlockStatus(extent.offset + start, end - start, zero=zero, hole=zero))
        return out

    def read_now(self, offset: int, length: int) -> Buffer | None:
        if self.weather.random.random() < 0.5:
            return None
        if self.weather.strikes(self.weather.read_errors):
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        return self.disk.read_now(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        if self.weather.random.random() < 0.5:
            return False
        if self.weather.strikes(self.weather.write_errors):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        return self.disk.write_now(offset, data)

    async def close(self) -> None: ...


class WildSink:
    """Keeps what it gets; ``outcome`` is "" until commit() or abort()."""

    name = "sink"

    def __init__(self, weather: Weather) -> None:
        self.content = bytearray()
        self.outcome = ""
        self._weather = weather
        self._begun = False

    async def begin(self) -> None:
        assert not self._begun
        await self._do(lambda: None)
        self._begun = True

    async def write(self, buffers: Sequence[Buffer]) -> None:
        assert not self.outcome
        await self._do(lambda: [self.content.extend(buffer) for buffer in buffers])

    async def _do(self, action: Callable[[], object]) -> None:
        await to_its_end(self._act(action))

    async def _act(self, action: Callable[[], object]) -> None:
        await self._weather.wait()
        if self._weather.strikes(self._weather.sink_errors):
            raise self._weather.random.choice([TargetError, TargetFullError])("the sink fails")
        action()
        await self._weather.wait()

    async def commit(self) -> None:
        assert self._begun and not self.outcome
        await self._weather.wait()
        if self._weather.strikes(self._weather.sink_errors):
            raise TargetError("the sink fails at the end")
        self.outcome = "committed"

    async def abort(self) -> None:
        assert not self.outcome, f"aborted after it was {self.outcome}"
        self.outcome = "aborted"


class WildIntake:
    """An intake that takes its time: an archive of many megabytes in small."""

    def __init__(self, inner: Intake, weather: Weather) -> None:
        self._inner, self._weather = inner, weather

    @property
    def written(self) -> int:
        return self._inner.written

    @property
    def stored(self) -> int | None:
        return self._inner.stored

    @property
    def counts(self) -> dict[int, DriveCounts]:
        return self._inner.counts

    @property
    def digest(self) -> bytes | None:
        return self._inner.digest

    async def start(self) -> None:
        await self._inner.start()

    async def prepare(self, pieces: Sequence[Piece], pool: ThreadPoolExecutor) -> Sequence[Prepared]:
        await self._weather.wait()
        return await self._inner.prepare(pieces, pool)

    async def take(self, drive_id: int, first: int, prepared: Prepared) -> None:
        await self._weather.wait()
        await self._inner.take(drive_id, first, prepared)

    async def put_zeros(self, drive_id: int, first: int, count: int) -> int:
        await self._weather.wait()
        return await self._inner.put_zeros(drive_id, first, count)

    async def put_unchanged(self, drive_id: int, first: int, count: int) -> None:
        await self._weather.wait()
        await self._inner.put_unchanged(drive_id, first, count)

    async def differs(self, piece: Piece) -> bool:
        await self._weather.wait()
        return await self._inner.differs(piece)

    async def drain(self) -> None:
        await self._inner.drain()

    async def finish(self, about: dict[str, Any]) -> None:
        await self._inner.finish(about)

    async def commit(self) -> None:
        await self._inner.commit()

    async def abort(self) -> None:
        await self._inner.abort()


class WildFleece:
    """A fleecing file of ``limit`` bytes, in memory."""

    def __init__(self, limit: int, weather: Weather) -> None:
        self._limit, self._weather = limit, weather
        self._stored: dict[int, bytes] = {}
        self._next = 0

    async def store(self, contents: Sequence[Buffer]) -> int | None:
        content = b"".join(contents)
        await self._weather.wait()
        if self._weather.strikes(self._weather.fleece_errors):
            raise TargetError("the fleecing file fails")
        if sum(map(len, self._stored.values())) + len(content) > self._limit:
            return None
        self._next += 1
        self._stored[self._next] = content
        return self._next

    async def load(self, place: int, size: int) -> Buffer:
        await self._weather.wait()
        if self._weather.strikes(self._weather.fleece_errors):
            raise TargetError("the fleecing file fails")
        content = self._stored.pop(place)
        assert len(content) == size
        return content
