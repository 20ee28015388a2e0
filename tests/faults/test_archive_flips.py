"""Every single byte of an archive changed: verify finds it, and nobody restores wrong data and calls it done."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from archives import decode, encode, frames_of, open_index

from pybackup.core.archive.stream import Digests
from pybackup.core.errors import ArchiveError
from pybackup.formats.vma_layout import CLUSTER_SIZE

NOISE = random.Random(5)
DISKS = {
    "scsi0": bytes(70_000) + NOISE.randbytes(700) + bytes(130_000) + b"text " * 200 + bytes(CLUSTER_SIZE * 120),
    "scsi1": NOISE.randbytes(300) + b"\0" * 4097,
}
CONFIGS = [("qemu-server.conf", b"name: test\ncores: 2\n")]
COMPRESSED = encode(DISKS, configs=CONFIGS, frame_size=65536)
PLAIN = encode(DISKS, configs=CONFIGS, level=None)
DATA = [
    (drive_id, number, disk[number * CLUSTER_SIZE :][:CLUSTER_SIZE])
    for drive_id, disk in enumerate(DISKS.values(), 1)
    for number in range(-(-len(disk) // CLUSTER_SIZE))
    if any(disk[number * CLUSTER_SIZE :][:CLUSTER_SIZE])
]
"""The clusters that are not zero."""


def flipped(archive: bytes, *flips: int, step: int = 1) -> Iterator[tuple[int, bytes]]:
    """(offset, archive with the byte there changed) for every byte, or every ``step``th."""
    for flip in flips:
        for at in range(0, len(archive), step):
            broken = bytearray(archive)
            broken[at] ^= flip
            yield at, bytes(broken)


def undetected(archive: bytes, *flips: int) -> list[int]:
    """Where a change goes unseen by verify; none of them may change anything that is restored."""
    unseen = []
    whole = decode(archive)
    sound = whole.written, whole.stream.header
    for at, broken in flipped(archive, *flips):
        try:
            read = decode(broken, tolerant=True)
        except ArchiveError:
            continue
        if read.damage:
            continue
        assert (read.written, read.stream.header) == sound, f"byte {at}: wrong data, and nobody said so"
        unseen.append(at)
    return unseen


def test_the_archives_are_small_and_sound() -> None:
    assert len(COMPRESSED) < 6_000
    assert len(PLAIN) < 31_000
    assert decode(COMPRESSED).drives == decode(PLAIN).drives == DISKS


def test_every_changed_byte_of_a_compressed_archive_is_found() -> None:
    assert set(undetected(COMPRESSED, 0xFF, 0x01)) <= set(bits_that_mean_nothing())


def bits_that_mean_nothing() -> Iterator[int]:
    """zstd's entropy coding has padding bits at the ends of its tables and streams that no decoder looks at.

    They lie in compressed blocks only, and whatever they are, the content is the same (undetected() asserts it).
    """
    for frame in frames_of(COMPRESSED):
        yield from range(frame.offset + 9, frame.offset + len(frame.content) - 4)


def test_every_changed_byte_of_a_plain_archive_is_found() -> None:
    assert undetected(PLAIN, 0x01) == []


def test_restore_stops_at_every_changed_byte_or_is_right() -> None:
    """Restore computes fewer digests than verify: none where zstd's checksum has proved the bytes."""
    sound = decode(COMPRESSED).written
    for archive, step in ((COMPRESSED, 1), (PLAIN, 7)):
        for _, broken in flipped(archive, 0xFF, step=step):
            try:
                assert decode(broken, digests=Digests.UNPROVEN).written == sound
            except ArchiveError:
                continue


@pytest.mark.parametrize("archive", [COMPRESSED, PLAIN], ids=["compressed", "plain"])
def test_every_truncation_is_found(archive: bytes) -> None:
    boundaries = (
        [frame.offset for frame in frames_of(archive)] if archive is COMPRESSED else range(0, len(archive), 512)
    )
    sizes = {at + more for at in boundaries for more in (-1, 0, 1)} & set(range(len(archive)))
    for size in sorted(sizes):
        try:
            read = decode(archive[:size], tolerant=True)
        except ArchiveError:
            continue
        if not read.damage:
            # Only the index was cut off, at its beginning: that is an archive without an index, and whole.
            assert read.drives == DISKS
            assert not read.stream.has_seek_table
            assert size == frames_of(archive)[-3].offset


def test_every_byte_more_is_found() -> None:
    for archive in (COMPRESSED, PLAIN):
        for more in (b"\0", b"x" * 600, bytes(512), archive[:100], archive):
            try:
                assert decode(archive + more, tolerant=True).damage
            except ArchiveError:
                continue


def test_random_access_is_right_or_fails_at_every_changed_byte() -> None:
    def read_all(archive: bytes) -> None:
        opened = open_index(archive)
        for drive_id, number, content in DATA:
            assert opened.read_cluster(drive_id, number)[: len(content)] == content

    for _, broken in flipped(COMPRESSED, 0xFF, 0x10):
        try:
            read_all(broken)
        except ArchiveError:
            continue


def test_damage_names_drive_clusters_and_bytes() -> None:
    broken = bytearray(PLAIN)
    at = PLAIN.index(b"text text")
    broken[at] ^= 1
    texts = [str(damage) for damage in decode(bytes(broken), tolerant=True).damage]
    assert any("drive scsi0, clusters 1 to 1 (bytes 65536 to 131071 of the drive)" in text for text in texts)
    assert any("drive scsi0, clusters 3 to 3" in text for text in texts)


def test_what_is_not_damaged_is_saved() -> None:
    """One cluster's frame is lost: everything else comes out right, and the loss is listed."""
    disks = {"a": NOISE.randbytes(CLUSTER_SIZE * 5 + 100), "b": NOISE.randbytes(1000)}
    archive = encode(disks, frame_size=65536)
    frames = [frame for frame in frames_of(archive) if frame.content_size == CLUSTER_SIZE]
    broken = bytearray(archive)
    broken[frames[2].offset + 1000] ^= 0xFF
    read = decode(bytes(broken), tolerant=True)
    assert read.drives["b"] == disks["b"]
    lost = slice(2 * CLUSTER_SIZE, 3 * CLUSTER_SIZE)
    expected = bytearray(disks["a"])
    expected[lost] = bytes(CLUSTER_SIZE)
    assert read.drives["a"] == expected
    assert any((one.drive, one.first, one.clusters) == ("a", 2, 1) for one in read.damage)


@pytest.mark.parametrize("lost", range(1, 6))
def test_after_a_lost_frame_header_the_next_extent_is_found(lost: int) -> None:
    disks = {"a": NOISE.randbytes(CLUSTER_SIZE * 120)}
    archive = encode(disks, frame_size=1 << 20)
    frame = frames_of(archive)[lost]
    broken = bytearray(archive)
    broken[frame.offset : frame.offset + 4] = b"\0\0\0\0"
    read = decode(bytes(broken), tolerant=True)
    saved = sum(
        read.drives["a"][at : at + CLUSTER_SIZE] == disks["a"][at : at + CLUSTER_SIZE]
        for at in range(0, len(disks["a"]), CLUSTER_SIZE)
    )
    assert saved >= 62
    missing = sum(one.clusters or 0 for one in read.damage if one.what == "missing")
    assert saved + missing == 120


@pytest.mark.parametrize("kind", ["compressed", "plain"])
def test_what_is_there_of_the_last_extent_is_saved(kind: str) -> None:
    """Frames that are whole lie before where an archive was cut off; all else is listed, and zeros are known."""
    archive = PLAIN if kind == "plain" else encode(DISKS, frame_size=8192)
    size = archive.index(b"text text") if kind == "plain" else frames_of(archive)[3].offset + 20
    read = decode(archive[:size], tolerant=True)
    assert [(drive_id, offset // CLUSTER_SIZE) for drive_id, offset, _ in read.written] == [(1, 1)]
    assert read.drives["scsi0"][: 3 * CLUSTER_SIZE] == DISKS["scsi0"][: 3 * CLUSTER_SIZE]
    lost = [(damage.drive, damage.first, damage.clusters) for damage in read.damage if damage.drive]
    assert lost == [("scsi0", 3, 1), ("scsi0", 58, 66), ("scsi1", 0, 1)]
