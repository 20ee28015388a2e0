from __future__ import annotations

import asyncio
import errno

import pytest
from archives import encode, frames_of, open_index
from device_contract import SIZE, DeviceContract, described, pattern

from pybackup.core.archive.drive import ArchiveDrive
from pybackup.core.archive.view import ArchiveView
from pybackup.core.device import BlockDevice, BlockStatus


def drive_of(archive: bytes, name: str = "disk") -> ArchiveDrive:
    opened = open_index(archive)
    info = opened.header.drive(name)
    assert info is not None
    return ArchiveDrive(ArchiveView([opened]), info)


class TestArchiveDriveContract(DeviceContract):
    async def make(self, contents: bytes) -> BlockDevice:
        return drive_of(encode({"other": b"x" * 70_000, "disk": contents}, frame_size=65536))

    async def make_read_only(self, contents: bytes) -> BlockDevice:
        return await self.make(contents)

    # An archive cannot be written.
    test_writes_at_any_size_and_offset = None
    test_takes_every_kind_of_buffer = None
    test_a_read_buffer_belongs_to_the_caller = None
    test_write_zeroes_zeroes_the_range_and_nothing_else = None
    test_fast_zeroes_are_done_or_change_nothing = None
    test_discard_touches_nothing_outside = None
    test_many_requests_at_once = None


def test_zero_clusters_are_known_without_reading() -> None:
    disk = bytes(65536) + pattern(65536) + bytes(200_000)
    assert asyncio.run(drive_of(encode({"disk": disk})).extents(100, len(disk) - 100)) == [
        BlockStatus(100, 65436, zero=True, hole=True),
        BlockStatus(65536, 65536, zero=False, hole=False),
        BlockStatus(131072, 200_000, zero=True, hole=True),
    ]


def test_many_reads_at_once() -> None:
    disk = pattern(SIZE)

    async def test() -> None:
        device = drive_of(encode({"disk": disk}, frame_size=65536))
        starts = range(0, SIZE, 3001)
        read = await asyncio.gather(*(device.pread(at, min(3001, SIZE - at)) for at in starts))
        assert b"".join(map(bytes, read)) == disk
        assert await described(device) == disk
        await device.close()

    asyncio.run(test())


def test_damage_is_eio_and_says_where() -> None:
    archive = bytearray(encode({"disk": pattern(SIZE)}, frame_size=65536))
    first_cluster = frames_of(bytes(archive))[2]
    archive[first_cluster.offset + 20] ^= 0xFF

    async def test() -> None:
        device = drive_of(bytes(archive))
        with pytest.raises(OSError, match="damaged") as caught:
            await device.pread(0, SIZE)
        assert caught.value.errno == errno.EIO
        assert bytes(await device.pread(131072, 100)) == pattern(SIZE)[131072:131172]
        await device.close()

    asyncio.run(test())
