"""What every BlockDevice must do; each kind of device runs these tests by a subclass that makes one.

class TestMyDevice(DeviceContract):
    async def make(self, contents: bytes) -> BlockDevice: ...
    async def make_read_only(self, contents: bytes) -> BlockDevice: ...
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from doubles import CheckedDevice

from pybackup.core.device import BlockDevice

SIZES = [1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 200_001]
SIZE = 200_001


def pattern(size: int, seed: int = 0) -> bytes:
    """``size`` bytes without any zero."""
    return bytes((number * 7 + seed) % 255 + 1 for number in range(size))


async def contents(device: BlockDevice) -> bytes:
    """The whole disk."""
    return bytes(await device.pread(0, device.size))


async def described(device: BlockDevice) -> bytes:
    """The whole disk as a backup sees it: extents that read as zero are not read."""
    disk = bytearray(device.size)
    position = 0
    while position < device.size:
        for extent in await device.extents(position, device.size - position):
            if not extent.zero:
                disk[extent.offset : extent.end] = await device.pread(extent.offset, extent.length)
            position = extent.end
    return bytes(disk)


class DeviceContract(ABC):
    """The contract; ``size_unit`` is for devices whose size must be a multiple of so many bytes."""

    size_unit = 1

    @abstractmethod
    async def make(self, contents: bytes) -> BlockDevice:
        """Make a writable device with these contents."""

    @abstractmethod
    async def make_read_only(self, contents: bytes) -> BlockDevice:
        """Make a device that refuses every mutation."""

    @asynccontextmanager
    async def device(self, contents: bytes, read_only: bool = False) -> AsyncIterator[CheckedDevice]:
        device = CheckedDevice(await (self.make_read_only if read_only else self.make)(contents))
        try:
            yield device
        finally:
            await device.close()

    def run(self, test: Coroutine[Any, Any, None]) -> None:
        asyncio.run(test)

    def sized(self, size: int) -> int:
        return -(-size // self.size_unit) * self.size_unit

    @pytest.mark.parametrize("size", SIZES)
    def test_reads_what_is_there_at_any_size(self, size: int) -> None:
        async def test() -> None:
            disk = pattern(self.sized(size))
            async with self.device(disk, read_only=True) as device:
                assert device.size == len(disk)
                assert await contents(device) == disk
                assert bytes(await device.pread(len(disk) - 1, 1)) == disk[-1:]
                assert bytes(await device.pread(len(disk), 0)) == b""

        self.run(test())

    @pytest.mark.parametrize("size", SIZES)
    def test_writes_at_any_size_and_offset(self, size: int) -> None:
        async def test() -> None:
            disk = bytearray(self.sized(size))
            async with self.device(bytes(disk)) as device:
                for offset in {0, len(disk) // 3, len(disk) - 1}:
                    data = pattern(min(5000, len(disk) - offset), offset)
                    await device.pwrite(offset, data)
                    disk[offset : offset + len(data)] = data
                await device.flush()
                assert await contents(device) == disk
                assert await described(device) == disk

        self.run(test())

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_takes_every_kind_of_buffer(self, kind: Callable[[bytes], Any]) -> None:
        async def test() -> None:
            async with self.device(bytes(self.sized(SIZE))) as device:
                await device.pwrite(10, kind(b"abc"))
                assert bytes(await device.pread(9, 5)) == b"\0abc\0"

        self.run(test())

    def test_a_read_buffer_belongs_to_the_caller(self) -> None:
        async def test() -> None:
            async with self.device(pattern(self.sized(SIZE))) as device:
                before = await device.pread(0, 100)
                kept = bytes(before)
                await device.pwrite(0, bytes(100))
                assert bytes(before) == kept

        self.run(test())

    @pytest.mark.parametrize("may_punch", [True, False])
    @pytest.mark.parametrize("offset, length", [(0, 1), (1, 511), (4095, 4098), (3, 150_000), (65536, 65536), (7, 0)])
    def test_write_zeroes_zeroes_the_range_and_nothing_else(self, may_punch: bool, offset: int, length: int) -> None:
        async def test() -> None:
            disk = bytearray(pattern(self.sized(SIZE)))
            async with self.device(bytes(disk)) as device:
                await device.write_zeroes(offset, length, may_punch=may_punch)
                disk[offset : offset + length] = bytes(length)
                assert await contents(device) == disk
                assert await described(device) == disk

        self.run(test())

    @pytest.mark.parametrize("may_punch", [True, False])
    def test_fast_zeroes_are_done_or_change_nothing(self, may_punch: bool) -> None:
        async def test() -> None:
            disk = bytearray(pattern(self.sized(SIZE)))
            async with self.device(bytes(disk)) as device:
                try:
                    await device.write_zeroes(65536, 65536, may_punch=may_punch, fast_only=True)
                    disk[65536:131072] = bytes(65536)
                except OSError as error:
                    assert error.errno == errno.EOPNOTSUPP
                assert await contents(device) == disk

        self.run(test())

    def test_discard_touches_nothing_outside(self) -> None:
        async def test() -> None:
            disk = pattern(self.sized(SIZE))
            async with self.device(disk) as device:
                await device.discard(5000, 100_000)
                await device.discard(9, 0)
                after = await contents(device)
                assert after[:5000] == disk[:5000]
                assert after[105_000:] == disk[105_000:]

        self.run(test())

    @pytest.mark.parametrize("offset, length", [(0, 1), (4095, 2), (4097, 70_000), (65536, 65536), (199_999, 2)])
    def test_extents_of_any_part(self, offset: int, length: int) -> None:
        async def test() -> None:
            disk = bytearray(self.sized(SIZE))
            disk[70_000:70_010] = b"x" * 10
            disk[199_999:200_001] = b"yz"
            async with self.device(bytes(disk)) as device:
                for extent in await device.extents(offset, length):
                    assert not extent.zero or not any(disk[extent.offset : extent.end])

        self.run(test())

    def test_now_is_right_or_declines(self) -> None:
        async def test() -> None:
            disk = bytearray(pattern(self.sized(SIZE)))
            async with self.device(bytes(disk)) as device:
                for offset, length in [(0, 1), (4096, 4096), (100, 10_000), (1, 190_000), (8192, 0)]:
                    data = device.read_now(offset, length)
                    assert data is None or bytes(data) == disk[offset : offset + length]
                    if device.write_now(offset, pattern(length, 99)):
                        disk[offset : offset + length] = pattern(length, 99)
                assert await contents(device) == disk

        self.run(test())

    def test_read_only_means_eperm(self) -> None:
        async def test() -> list[int | None]:
            codes = []
            async with self.device(pattern(self.sized(SIZE)), read_only=True) as device:
                assert device.read_only
                for change in (device.pwrite(0, b"x"), device.write_zeroes(0, 4096), device.discard(0, 4096)):
                    with pytest.raises(OSError) as caught:
                        await change
                    codes.append(caught.value.errno)
                with suppress(PermissionError):
                    assert not device.write_now(0, b"x")
                await device.flush()
                assert await contents(device) == pattern(self.sized(SIZE))
            return codes

        assert asyncio.run(test()) == [errno.EPERM] * 3

    def test_many_requests_at_once(self) -> None:
        async def test() -> None:
            disk = pattern(self.sized(SIZE))
            async with self.device(bytes(len(disk))) as device:
                pieces = range(0, len(disk), 3001)
                await asyncio.gather(*(device.pwrite(start, disk[start : start + 3001]) for start in pieces))
                await asyncio.gather(device.flush(), device.flush())
                read = await asyncio.gather(*(device.pread(at, min(3001, len(disk) - at)) for at in pieces))
                assert b"".join(read) == disk

        self.run(test())

    def test_closes_twice(self) -> None:
        async def test() -> None:
            device = await self.make(pattern(self.sized(SIZE)))
            await device.close()
            await device.close()

        self.run(test())
