"""The device contract over NBD: our own server, and servers that can do less, or want whole blocks."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from device_contract import DeviceContract, pattern
from nbd_double import ALL_FLAGS, Export, PlainDisk, speaking
from nbd_serving import serving

from pybackup.core.device import BlockDevice
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.devices.raw import RawDevice
from pybackup.core.errors import SourceError, TargetError
from pybackup.core.nbd.client import NbdDevice
from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.formats import nbd_wire as wire


class _Served(NbdDevice):
    """Ends its server, too, when it is closed."""

    behind: AsyncExitStack

    async def close(self) -> None:
        await super().close()
        await self.behind.aclose()


class _OverNbd(DeviceContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = str(tmp_path / "nbd.sock")
        self.file = tmp_path / "disk.raw"

    async def connect(self, server: Any, writable: bool) -> BlockDevice:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(server)
            device = await _Served.connect(NbdAddress("disk", socket=self.path), writable=writable)
            assert isinstance(device, _Served)
            device.behind = stack.pop_all()
            return device


class TestOurServerWithMemory(_OverNbd):
    async def make(self, contents: bytes) -> BlockDevice:
        return await self.connect(serving(self.path, MemoryDevice(contents)), True)

    async def make_read_only(self, contents: bytes) -> BlockDevice:
        return await self.connect(serving(self.path, MemoryDevice(contents, read_only=True)), False)


class TestOurServerWithAFile(_OverNbd):
    async def make(self, contents: bytes) -> BlockDevice:
        self.file.write_bytes(contents)
        return await self.connect(serving(self.path, RawDevice.open(self.file, writable=True)), True)

    async def make_read_only(self, contents: bytes) -> BlockDevice:
        self.file.write_bytes(contents)
        return await self.connect(serving(self.path, RawDevice.open(self.file)), False)


class _OtherServer(_OverNbd):
    flags = ALL_FLAGS
    structured = True
    blocks: tuple[int, int, int] | None = None

    async def make(self, contents: bytes) -> BlockDevice:
        return await self._connect(contents, self.flags, True)

    async def make_read_only(self, contents: bytes) -> BlockDevice:
        return await self._connect(contents, self.flags | wire.FLAG_READ_ONLY, False)

    async def _connect(self, contents: bytes, flags: int, writable: bool) -> BlockDevice:
        export = Export(flags=flags, structured=self.structured, blocks=self.blocks)
        return await self.connect(speaking(self.path, PlainDisk(contents, export)), writable)


class TestAServerThatCanAll(_OtherServer):
    pass


class TestAServerThatCanLittle(_OtherServer):
    flags = wire.FLAG_HAS_FLAGS
    structured = False


class TestAServerOfSeveralConnections(_OtherServer):
    flags = ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN


class TestAServerOfSectors(_OtherServer):
    blocks = (512, 4096, 1 << 16)
    size_unit = 512


class TestAServerOfPages(_OtherServer):
    flags = ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN
    blocks = (4096, 4096, 4096)
    size_unit = 4096


class TestAServerOfPagesThatCanLittle(_OtherServer):
    flags = wire.FLAG_HAS_FLAGS | wire.FLAG_CAN_MULTI_CONN
    structured = False
    blocks = (4096, 4096, 1 << 25)
    size_unit = 4096


@pytest.mark.parametrize("seed", range(8))
def test_neighbours_in_one_block_are_changed_at_the_same_time(tmp_path: Path, seed: int) -> None:
    """Every way to change a disk, on ranges that do not overlap but share blocks, all at once."""
    source = random.Random(seed)
    size = 16 * 4096
    cuts = sorted(source.sample(range(1, size), 40))
    ranges = list(zip([0, *cuts], [*cuts, size], strict=True))
    model = bytearray(pattern(size))
    disk = PlainDisk(model, Export(flags=ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN, blocks=(4096, 4096, 8192)))

    async def change(device: NbdDevice, start: int, end: int, kind: str) -> None:
        if kind == "write":
            model[start:end] = pattern(end - start, start)
            await device.pwrite(start, pattern(end - start, start))
        elif kind == "zero":
            model[start:end] = bytes(end - start)
            await device.write_zeroes(start, end - start)
        else:
            assert await device.pread(start, end - start) == model[start:end]

    async def test() -> None:
        path = str(tmp_path / "nbd.sock")
        async with speaking(path, disk):
            device = await NbdDevice.connect(NbdAddress("", socket=path), writable=True)
            assert device.connections == 4
            source.shuffle(ranges)
            kinds = [source.choice(["write", "zero", "read"]) for _ in ranges]
            todo = zip(ranges, kinds, strict=True)
            await asyncio.gather(*(change(device, start, end, kind) for (start, end), kind in todo))
            assert await device.pread(0, size) == model
            await device.close()

    virtual_time.run(test())
    assert disk.disk == model


def test_a_part_of_a_block_never_undoes_a_write_of_the_whole(tmp_path: Path) -> None:
    disk = PlainDisk(bytes(8192), Export(blocks=(4096, 4096, 8192)))

    async def test() -> None:
        path = str(tmp_path / "nbd.sock")
        async with speaking(path, disk):
            device = await NbdDevice.connect(NbdAddress("", socket=path), writable=True)
            await asyncio.gather(device.pwrite(0, b"b"), device.pwrite(0, b"a" * 4096))
            assert bytes(disk.disk[1:4096]) == b"a" * 4095
            await asyncio.gather(device.pwrite(4100, b"c"), device.write_zeroes(0, 8192))
            assert not any(disk.disk[4101:]) and not any(disk.disk[:4100])
            await device.close()

    virtual_time.run(test())


def test_fast_zeroes_of_a_part_of_a_block_change_nothing(tmp_path: Path) -> None:
    disk = PlainDisk(pattern(8192), Export(blocks=(4096, 4096, 8192)))

    async def test() -> None:
        path = str(tmp_path / "nbd.sock")
        async with speaking(path, disk):
            device = await NbdDevice.connect(NbdAddress("", socket=path), writable=True)
            for offset, length in [(0, 1), (1, 8191), (4096, 4095)]:
                with pytest.raises(OSError, match="not supported"):
                    await device.write_zeroes(offset, length, fast_only=True)
            await device.close()

    virtual_time.run(test())
    assert disk.disk == pattern(8192)


def test_who_wants_to_write_is_told_at_once_that_it_is_read_only(tmp_path: Path) -> None:
    async def test() -> None:
        path = str(tmp_path / "nbd.sock")
        async with serving(path, MemoryDevice(100, read_only=True)):
            address = NbdAddress("disk", socket=path)
            with pytest.raises(TargetError, match=r"cannot write to .*: it is read-only"):
                await NbdDevice.connect(address, writable=True, failure=TargetError)
            with pytest.raises(SourceError, match="it has no such export"):
                await NbdDevice.connect(NbdAddress("disc", socket=path))

    virtual_time.run(test())
