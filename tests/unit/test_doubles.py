from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from device_contract import DeviceContract
from doubles import CheckedDevice, FaultyDevice, check_extents

from pybackup.core.device import BlockDevice, BlockStatus
from pybackup.core.devices.memory import MemoryDevice


class TestFaultyDeviceWithoutFaults(DeviceContract):
    async def make(self, contents: bytes) -> BlockDevice:
        return FaultyDevice(MemoryDevice(contents))

    async def make_read_only(self, contents: bytes) -> BlockDevice:
        return FaultyDevice(MemoryDevice(contents, read_only=True))


def outcome(action: Coroutine[Any, Any, object]) -> int:
    """0 when it works, else the errno."""
    try:
        asyncio.run(action)
    except OSError as error:
        return error.errno or -1
    return 0


def test_faults_happen_where_the_maps_say() -> None:
    device = FaultyDevice(MemoryDevice(8192), reads="rrEr", writes="wNE")
    assert [outcome(device.pread(0, 1)) for _ in range(6)] == [0, 0, errno.EIO, 0, 0, 0]
    actions: list[Callable[[], Coroutine[Any, Any, None]]] = [
        lambda: device.pwrite(0, b"x"),
        lambda: device.write_zeroes(0, 1),
        lambda: device.discard(0, 1),
        lambda: device.pwrite(1, b"y"),
    ]
    assert [outcome(action()) for action in actions] == [0, errno.ENOSPC, errno.EIO, 0]
    assert device.calls == {"read": 6, "write": 4}
    assert asyncio.run(device.inner.pread(0, 2)) == b"xy"


@pytest.mark.parametrize(
    "action",
    [
        lambda device: device.pread(8192, 1),
        lambda device: device.pread(-1, 1),
        lambda device: device.pwrite(1, b"x"),
        lambda device: device.write_zeroes(0, 100),
        lambda device: device.extents(512, 0),
    ],
)
def test_a_careless_caller_is_caught(action: Callable[[CheckedDevice], Coroutine[Any, Any, None]]) -> None:
    device = CheckedDevice(MemoryDevice(8192), alignment=512)
    with pytest.raises(AssertionError):
        asyncio.run(action(device))


def test_use_after_close_is_caught() -> None:
    device = CheckedDevice(MemoryDevice(8192))
    asyncio.run(device.close())
    with pytest.raises(AssertionError, match="after close"):
        asyncio.run(device.flush())


@pytest.mark.parametrize("ranges", [[], [(0, 0)], [(1, 9)], [(0, 4), (5, 5)], [(0, 11)]])
def test_wrong_extents_are_caught(ranges: Sequence[tuple[int, int]]) -> None:
    with pytest.raises(AssertionError):
        check_extents([BlockStatus(*extent, zero=False, hole=False) for extent in ranges], 0, 10)
