"""A disk that comes through a pipe, whose writer may stall, say too little or too much."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator

import pytest

from pybackup.core.devices.sequential import SequentialDevice
from pybackup.core.errors import SourceError


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


async def until_it_waits(device: SequentialDevice, reading: asyncio.Task[object]) -> None:
    """Let the task start its thread: a call that has not begun is dropped, and proves nothing."""
    while device._calls.idle:
        assert not reading.done()
        await asyncio.sleep(0)


@pytest.mark.parametrize("sent", [b"", b"half", b"the whole disk"])
def test_a_read_that_waits_can_be_cancelled(pipe: tuple[int, int], sent: bytes) -> None:
    async def main() -> None:
        device = SequentialDevice(pipe[0], len(b"the whole disk"), "stdin")
        os.write(pipe[1], sent)
        reading: asyncio.Task[object] = asyncio.create_task(device.pread(0, device.size))
        await until_it_waits(device, reading)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await device.close()
        await device.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_closing_ends_a_read_that_waits(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        device = SequentialDevice(pipe[0], 10, "stdin")
        reading: asyncio.Task[object] = asyncio.create_task(device.pread(0, 10))
        await until_it_waits(device, reading)
        await device.close()
        with pytest.raises(OSError, match=os.strerror(errno.ECANCELED)):
            await reading

    asyncio.run(asyncio.wait_for(main(), 30))


def test_the_end_is_waited_for_and_the_loop_goes_on(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        device = SequentialDevice(pipe[0], 4, "stdin")
        os.write(pipe[1], b"disk")
        reading: asyncio.Task[object] = asyncio.create_task(device.pread(0, 4))
        await until_it_waits(device, reading)
        assert not reading.done()
        os.write(pipe[1], b"!")
        with pytest.raises(SourceError, match="stdin has more than the 4 bytes"):
            await reading
        await device.close()

    asyncio.run(asyncio.wait_for(main(), 30))
