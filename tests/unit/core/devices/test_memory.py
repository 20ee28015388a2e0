from __future__ import annotations

import asyncio
import errno

import pytest
from device_contract import DeviceContract

from pybackup.core.device import BlockDevice, BlockStatus
from pybackup.core.devices.memory import MemoryDevice


class TestMemoryContract(DeviceContract):
    async def make(self, contents: bytes) -> BlockDevice:
        return MemoryDevice(contents)

    async def make_read_only(self, contents: bytes) -> BlockDevice:
        return MemoryDevice(contents, read_only=True)


def test_a_size_makes_a_disk_of_zeros() -> None:
    device = MemoryDevice(10_000, name="blank")
    assert (device.size, device.name, device.contents()) == (10_000, "blank", bytes(10_000))


def test_first_contents_are_copied() -> None:
    data = bytearray(b"abc")
    device = MemoryDevice(data)
    data[0] = 0
    assert device.contents() == b"abc"


def test_zero_blocks_are_holes_clipped_to_the_question() -> None:
    device = MemoryDevice(bytes(5000) + b"x" * 5000 + bytes(3000))
    assert asyncio.run(device.extents(4000, 8999)) == [
        BlockStatus(4000, 96, zero=True, hole=True),
        BlockStatus(4096, 8192 - 4096 + 4096, zero=False, hole=False),
        BlockStatus(12288, 711, zero=True, hole=True),
    ]


def test_a_range_behind_the_end_is_refused() -> None:
    device = MemoryDevice(100)
    for action in (device.pread(100, 1), device.pwrite(-1, b"x"), device.write_zeroes(99, 2)):
        with pytest.raises(OSError, match="the size is 100") as caught:
            asyncio.run(action)
        assert caught.value.errno == errno.EINVAL
    assert device.size == 100
