"""A server for tests, and a device that shows what it is asked and waits where a test wants it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from doubles import CheckedDevice

from pybackup.core.device import BlockDevice, Buffer
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.nbd.server import NbdServer

SIZE = 1 << 20


class Watched(CheckedDevice):
    """Remembers what was asked of a disk in memory; waits at a gate where a test has closed it."""

    def __init__(self, data: int | bytes = SIZE, inline: bool = True) -> None:
        self.memory = MemoryDevice(data)
        super().__init__(self.memory)
        self.inline = inline
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls: list[tuple[Any, ...]] = []
        self.bytes_read = 0

    def shut(self) -> None:
        self.inline = False
        self.gate.clear()

    async def _call(self, *call: Any) -> None:
        self.calls.append(call)
        await self.gate.wait()

    async def pread(self, offset: int, length: int) -> Buffer:
        await self._call("pread", offset, length)
        self.bytes_read += length
        return await super().pread(offset, length)

    async def pwrite(self, offset: int, data: Buffer) -> None:
        await self._call("pwrite", offset, len(data))
        await super().pwrite(offset, data)

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        await self._call("zero", offset, length, may_punch, fast_only)
        await super().write_zeroes(offset, length, may_punch=may_punch, fast_only=fast_only)

    async def discard(self, offset: int, length: int) -> None:
        await self._call("discard", offset, length)
        await super().discard(offset, length)

    async def flush(self) -> None:
        await self._call("flush")
        await super().flush()

    def read_now(self, offset: int, length: int) -> Buffer | None:
        if not self.inline:
            return None
        self.bytes_read += length
        return super().read_now(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return self.inline and super().write_now(offset, data)


@asynccontextmanager
async def serving(
    path: str, device: BlockDevice | Mapping[str, BlockDevice], **options: Any
) -> AsyncIterator[NbdServer]:
    server = NbdServer(device if isinstance(device, Mapping) else {"disk": device}, **options)
    await server.start_unix(path)
    try:
        yield server
    finally:
        await server.close(grace=0)


async def until(condition: Callable[[], bool]) -> None:
    """Let everything else run until this is true."""
    while not condition():  # noqa: ASYNC110 - no event tells what is waited for
        await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        await asyncio.wait_for(test, 30)

    asyncio.run(within())
