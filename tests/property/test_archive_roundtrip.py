"""Whatever the disks hold, an archive gives it back: read in a row, and read at any place."""

from __future__ import annotations

import asyncio
import random

import zstandard
from archives import decode, encode, open_index
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.core.archive.drive import ArchiveDrive
from pybackup.core.archive.view import ArchiveView

EDGES = [1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 131072, 200_000]
FRAME_SIZES = [4096, 65536, 70_000, 1 << 20]


@st.composite
def disks(draw: st.DrawFn) -> bytes:
    """A disk of 1 to 200,000 bytes: blocks of zeros, of one byte, of noise; with single bytes at odd places."""
    size = draw(st.one_of(st.sampled_from(EDGES), st.integers(1, 200_000)))
    noise = random.Random(draw(st.integers(0, 1000)))
    disk = bytearray()
    while len(disk) < size:
        kind = draw(st.sampled_from(["zeros", "fill", "noise", "block"]))
        length = draw(st.sampled_from([1, 4096, 10_000, 65536, 100_000]))
        match kind:
            case "zeros":
                disk += bytes(length)
            case "fill":
                disk += b"\xa5" * length
            case "noise":
                disk += noise.randbytes(length)
            case "block":
                disk += bytes(-len(disk) % 4096) + noise.randbytes(4096)
    return bytes(disk[:size])


drives = st.lists(disks(), min_size=1, max_size=3).map(
    lambda found: {f"scsi{number}": disk for number, disk in enumerate(found)}
)


@settings(max_examples=60, deadline=None)
@given(drives=drives, frame_size=st.sampled_from(FRAME_SIZES), level=st.sampled_from([None, 1, 3]))
def test_what_went_in_comes_out(drives: dict[str, bytes], frame_size: int, level: int | None) -> None:
    archive = encode(drives, level=level, frame_size=frame_size)
    read = decode(archive)
    assert read.drives == drives
    assert read.damage == []
    assert decode(archive, tolerant=True).damage == []


@settings(max_examples=30, deadline=None)
@given(drives=drives, piece=st.sampled_from([1, 7, 4096, 65537]))
def test_the_source_may_give_any_pieces(drives: dict[str, bytes], piece: int) -> None:
    archive = encode({name: disk[:3000] for name, disk in drives.items()})
    assert decode(archive, piece=piece).drives == {name: disk[:3000] for name, disk in drives.items()}


@settings(max_examples=40, deadline=None)
@given(drives=drives, frame_size=st.sampled_from(FRAME_SIZES))
def test_the_plain_archive_and_the_decompressed_one_are_the_same_bytes(
    drives: dict[str, bytes], frame_size: int
) -> None:
    plain = encode(drives, level=None, frame_size=frame_size)
    compressed = encode(drives, level=1, frame_size=frame_size)
    with zstandard.ZstdDecompressor().stream_reader(compressed, read_across_frames=True) as reader:
        assert reader.read() == plain


@settings(max_examples=60, deadline=None)
@given(drives=drives, frame_size=st.sampled_from(FRAME_SIZES), data=st.data())
def test_any_place_can_be_read(drives: dict[str, bytes], frame_size: int, data: st.DataObject) -> None:
    archive = open_index(encode(drives, frame_size=frame_size))

    async def read(name: str) -> None:
        disk, info = drives[name], archive.header.drive(name)
        assert info is not None
        device = ArchiveDrive(ArchiveView([archive]), info)
        offset = data.draw(st.integers(0, len(disk)))
        length = data.draw(st.integers(0, len(disk) - offset))
        assert await device.pread(offset, length) == disk[offset : offset + length]
        assert await device.pread(0, len(disk)) == disk
        await device.close()

    for name in drives:
        asyncio.run(read(name))
