"""Whatever bytes an archive's readers are given: an error of ours or an answer, and no memory for empty promises."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from typing import Any

import zstandard
from archives import decode, encode, frames_of, open_index, pool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybackup.core.archive.by_index import DrivesByIndex
from pybackup.core.archive.stream import Digests
from pybackup.core.errors import PybackupError
from pybackup.formats import cluster_index as index
from pybackup.formats import vma, vma_layout
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.vma import DriveInfo, Header

NOISE = random.Random(9)
DISKS = {"a": NOISE.randbytes(150_000) + bytes(300_000), "b": b"text" * 5000}
PLAIN = encode(DISKS, level=None)
COMPRESSED = encode(DISKS, frame_size=65536)
ARCHIVES = [COMPRESSED, PLAIN, zstandard.compress(PLAIN), gzip.compress(PLAIN, 1)]
FRAMES = [bytes(frame.content) for frame in frames_of(COMPRESSED)]

BASE = 48 << 20
"""Bytes that reading may take whatever the file is: frames of 8 MiB, a few at once, and their copies."""
DIRECTORY = 128 << 20
"""The same where the file has a directory of the largest size."""


def read_every_way(archive: bytes, base: int = BASE) -> None:
    """Read it in all ways there are; only our own errors may come out, and memory stays in bounds."""
    tracemalloc.start()
    try:
        for options in ({"digests": Digests.UNPROVEN}, {"tolerant": True}, {"digests": Digests.NONE, "tolerant": True}):
            _read(archive, **options)
        _look_up(archive)
        _read_one_drive(archive)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < base + 20 * len(archive)


def _read(archive: bytes, **options: Any) -> None:
    try:
        decode(archive, **options)
    except PybackupError:
        return


def _read_one_drive(archive: bytes) -> None:
    try:
        source = DrivesByIndex(open_index(archive), pool, stop=lambda: None)
        for drive in source.header.drives:
            for checked in source.extents([drive.drive_id]):
                assert len(checked.extent.stored) == len(checked.extent.header.slots)
    except PybackupError:
        return


def _look_up(archive: bytes) -> None:
    try:
        opened = open_index(archive)
        for segment in opened.segments(opened.directory.segments, pool):
            assert segment.compressed_size >= 0
        for drive in opened.header.drives:
            for cluster in {0, 1, drive.clusters - 1}:
                opened.run_at(drive.drive_id, cluster)
                opened.read_cluster(drive.drive_id, cluster)
    except PybackupError:
        return


fuzz = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
starts = [
    b"",
    b"VMA\0\0\0\0\1",
    zs.FRAME_MAGIC,
    b"\x1f\x8b\x08",
    b"\x5b\x2a\x4d\x18",
    PLAIN[:60],
    PLAIN[:13000],
    FRAMES[0],
]


@fuzz
@given(start=st.sampled_from(starts), content=st.binary(max_size=2000))
def test_arbitrary_bytes(start: bytes, content: bytes) -> None:
    read_every_way(start + content)


@fuzz
@given(data=st.data())
def test_mutated_archives(data: st.DataObject) -> None:
    archive = bytearray(data.draw(st.sampled_from(ARCHIVES)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(archive)))
        length = data.draw(st.sampled_from([1, 4, 512, 5000]))
        match data.draw(st.sampled_from(["flip", "truncate", "remove", "insert", "splice", "repeat"])):
            case "flip":
                archive[at : at + 1] = bytes(byte ^ data.draw(st.integers(1, 255)) for byte in archive[at : at + 1])
            case "truncate":
                del archive[at:]
            case "remove":
                del archive[at : at + length]
            case "insert":
                archive[at:at] = data.draw(st.binary(max_size=20))
            case "splice":
                other = data.draw(st.sampled_from(ARCHIVES))
                archive[at:] = other[data.draw(st.integers(0, len(other))) :]
            case "repeat":
                archive[at:at] = archive[at : at + length]
    read_every_way(bytes(archive))


@fuzz
@given(numbers=st.lists(st.integers(0, len(FRAMES) - 1), max_size=12))
def test_frames_in_any_order(numbers: list[int]) -> None:
    read_every_way(b"".join(FRAMES[number] for number in numbers))


@fuzz
@given(data=st.data())
def test_extents_whose_md5_is_right_and_nothing_else(data: st.DataObject) -> None:
    """Entries, counts and digests of any kind: the checks behind the MD5."""
    header = vma.encode_header(Header(bytes(16), 0, (DriveInfo(1, "a", 200_000), DriveInfo(2, "vmstate", 100_000))))
    archive = header
    for _ in range(data.draw(st.integers(1, 3))):
        entries = data.draw(
            st.lists(
                st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from([0, 1, 0xFFFF])).map(
                    lambda entry: vma.pack_slot(*entry)
                ),
                max_size=58,
            )
        )
        right = sum((entry >> 48).bit_count() for entry in entries if entry >> 32 & 0xFF)
        blocks = data.draw(st.sampled_from([right, 0, 0xFFFF]))
        digest = data.draw(st.sampled_from([None, b"digest"]))
        archive += vma.encode_extent_header(bytes(16), entries, blocks, digest)
        archive += b"x" * data.draw(st.sampled_from([right * 4096, 0, 100]))
    read_every_way(archive)


def test_a_header_that_claims_everything_costs_nothing() -> None:
    drives = tuple(DriveInfo(number, f"d{number}", vma_layout.MAX_DRIVE_SIZE) for number in range(1, 255))
    read_every_way(vma.encode_header(Header(bytes(16), 0, drives)))


def test_frames_that_claim_everything_cost_nothing() -> None:
    for size in (b"\xa4\xff\xff\xff\xff", b"\xe4" + b"\xff" * 8, b"\xa4\x00\x00\x80\x00", b"\x84\x9f\xff\xff\xff\xff"):
        liar = zs.FRAME_MAGIC + size + b"\x01\x00\x00" + bytes(4)
        read_every_way(liar)
        read_every_way(FRAMES[0] + liar * 50)


def test_bombs_are_refused_or_bounded() -> None:
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(80 << 20))
    read_every_way(bomb)
    read_every_way(FRAMES[0] + bomb)
    read_every_way(gzip.compress(PLAIN[:13000] + bytes(60 << 20), 1))
    read_every_way(FRAMES[0] + index.wrap(index.DIRECTORY, bytes(64 << 20)) + zs.SeekTable().encode(), DIRECTORY)


def test_a_header_of_64_mib_is_read_only_if_it_is_there() -> None:
    header = bytearray(PLAIN[:60])
    header[56:60] = (64 << 20).to_bytes(4, "big")
    header[52:56] = (1 << 20).to_bytes(4, "big")
    read_every_way(bytes(header))
    read_every_way(zstandard.compress(bytes(header)))


def test_many_false_beginnings_do_not_take_forever() -> None:
    for magic in (zs.FRAME_MAGIC, b"\x5b\x2a\x4d\x18", b"\x5b\x2a\x4d\x18\xff\xff\xff\xff", b"VMAE"):
        _read(FRAMES[0] + magic * 20_000, tolerant=True)
        _read(PLAIN[:13000] + b"x" + magic * 50_000, tolerant=True)
