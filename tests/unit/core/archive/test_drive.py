from __future__ import annotations

import asyncio
import errno

import pytest
from archives import encode, frames_of, open_index, with_index
from device_contract import SIZE, DeviceContract, described, pattern

from pybackup.core.archive.drive import AHEAD, READ_NOW_MOST, ArchiveDrive
from pybackup.core.archive.index import ArchiveIndex
from pybackup.core.archive.view import ArchiveView
from pybackup.core.device import BlockDevice, BlockStatus
from pybackup.formats import cluster_index as index


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


class Reads:
    """An archive's bytes, and how often they were read. ``broken``: every read fails from now on."""

    def __init__(self, archive: bytes) -> None:
        self.content, self.count, self.broken = archive, 0, False

    def __call__(self, offset: int, length: int) -> bytes:
        self.count += 1
        if self.broken:
            raise OSError(errno.EIO, "broken")
        return self.content[offset : offset + length]


def drive_read_by(archive: bytes, *, reads_ahead: bool = True) -> tuple[ArchiveDrive, Reads]:
    reads = Reads(archive)
    opened = ArchiveIndex(reads, len(archive), "a.vma")
    return ArchiveDrive(ArchiveView([opened]), opened.header.drives[0], reads_ahead=reads_ahead), reads


def test_read_now_gives_zeros_and_kept_frames_and_reads_nothing() -> None:
    disk = pattern(300_000).ljust(6 * 65536, b"\0") + pattern(65536)

    async def test() -> None:
        device, reads = drive_read_by(encode({"disk": disk}, frame_size=65536))
        before = reads.count
        assert device.read_now(5 * 65536, 65536) is None, "no segment is known yet"
        assert reads.count == before
        await device.pread(0, 65536)
        reads.broken = True
        assert device.read_now(100, 5000) == disk[100:5100]
        assert device.read_now(5 * 65536, 65536) == bytes(65536)
        assert device.read_now(6 * 65536, 1) is None, "its frame was not read"
        assert device.read_now(5 * 65536 + 1, 65536) is None
        with pytest.raises(OSError, match="broken"):
            await device.pread(6 * 65536, 1)
        await device.close()

    asyncio.run(test())


def test_read_now_leaves_long_reads_to_a_thread() -> None:
    async def test() -> None:
        disk = pattern(65536) + bytes(READ_NOW_MOST)
        device, _ = drive_read_by(encode({"disk": disk}))
        await device.pread(0, 1)
        assert device.read_now(65536, READ_NOW_MOST) == bytes(READ_NOW_MOST)
        assert device.read_now(1, READ_NOW_MOST + 1) is None
        await device.close()

    asyncio.run(test())


def test_read_now_never_gives_what_does_not_match_its_digest() -> None:
    def forge(kind: int, content: bytes) -> bytes:
        # The last digest of the segment: that of the second cluster, in the same frame as the first.
        return content[:-1] + bytes([content[-1] ^ 1]) if kind == index.SEGMENT else content

    async def test() -> None:
        disk = pattern(131_072)
        device, reads = drive_read_by(with_index(encode({"disk": disk}), forge))
        assert await device.pread(0, 65536) == disk[:65536]
        reads.broken = True
        for _ in range(2):
            assert device.read_now(0, 65536) == disk[:65536]
            assert device.read_now(65536, 65536) is None
            with pytest.raises(OSError, match="does not match its digest"):
                await device.pread(65536, 65536)
        await device.close()

    asyncio.run(test())


def test_a_reader_that_goes_on_finds_the_next_frames_kept() -> None:
    disk = pattern(40 * 65536)

    async def test() -> None:
        device, reads = drive_read_by(encode({"disk": disk}, frame_size=65536))
        await device.pread(0, 65536)
        assert await device.pread(65536, 65536) == disk[65536:131_072]
        await device.pread(39 * 65536, 1)  # by the same thread, behind what reads ahead
        reads.broken = True
        for at in range(131_072, (2 + AHEAD) * 65536, 65536):
            assert device.read_now(at, 65536) == disk[at : at + 65536]
        await device.close()

    asyncio.run(test())


def test_who_wants_no_more_than_he_asks_for_gets_no_more() -> None:
    async def test() -> None:
        device, reads = drive_read_by(encode({"disk": pattern(40 * 65536)}, frame_size=65536), reads_ahead=False)
        for at in range(4):
            await device.pread(at * 65536, 65536)
        await device.pread(0, 1)
        before = reads.count
        assert device.read_now(5 * 65536, 1) is None
        await device.pread(5 * 65536, 1)
        assert reads.count > before
        await device.close()

    asyncio.run(test())


def test_a_reader_at_random_places_reads_nothing_else() -> None:
    disk = pattern(40 * 65536)

    async def test() -> None:
        device, reads = drive_read_by(encode({"disk": disk}, frame_size=65536))
        await device.pread(0, 100)
        before = reads.count
        await device.pread(20 * 65536, 100)
        await device.pread(7 * 65536, 100)
        await device.pread(7 * 65536, 100)
        assert reads.count <= before + 4
        await device.close()

    asyncio.run(test())


def test_what_is_read_ahead_in_vain_is_told_when_it_is_read() -> None:
    archive = bytearray(encode({"disk": pattern(40 * 65536)}, frame_size=65536))
    damaged = frames_of(bytes(archive))[6]
    archive[damaged.offset + 20] ^= 0xFF

    async def test() -> None:
        device, _ = drive_read_by(bytes(archive))
        position = 0
        with pytest.raises(OSError, match="damaged"):
            while position < 40 * 65536:
                data = device.read_now(position, 65536) or await device.pread(position, 65536)
                assert data == pattern(40 * 65536)[position : position + 65536]
                position += 65536
        assert position > 65536
        await device.close()

    asyncio.run(test())
