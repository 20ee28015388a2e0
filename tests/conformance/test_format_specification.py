"""A second reader, which follows pybackup-archive(5) and shares no code with ours, reads what `pybackup run` writes.

Nothing here imports what pybackup reads or writes archives with. Section names in the comments are those of the page.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard
from blake3 import blake3
from command_line import pybackup

CLUSTER, BLOCK = 65536, 4096
NOISE = random.Random(5)
DISKS = {
    # More frames of 64 KiB than a segment takes, a hole, and lone blocks.
    "scsi0": NOISE.randbytes(CLUSTER) * 1100 + bytes(200 * CLUSTER) + (NOISE.randbytes(BLOCK) + bytes(3 * BLOCK)) * 40,
    # Sizes that are no multiple of anything.
    "odd": NOISE.randbytes(3 * CLUSTER + 70_001),
    "zeros": bytes(131_073),
    "one": b"x",
}
CONFIGS = {"qemu-server.conf": b"cores: 2\n", "notes": b""}


class Drive(NamedTuple):
    name: str
    recorded: int
    size: int

    @property
    def clusters(self) -> int:
        return -(-self.size // CLUSTER)


class Header(NamedTuple):
    uuid: bytes
    size: int
    flags: int
    drives: dict[int, Drive]
    configs: dict[str, bytes]
    parent: tuple[bytes, bytes]


# -- VMA HEADER --


def read_header(stream: bytes) -> Header:
    magic, version, uuid, _, md5, blobs_at, used, size = struct.unpack_from(">4sI16sQ16sIII", stream)
    assert (magic, version, blobs_at) == (b"VMA\0", 1, 12288)
    head = stream[:size]
    assert size == 12288 + -(-used // 512) * 512
    assert hashlib.md5(head[:32] + bytes(16) + head[48:]).digest() == md5
    blobs = head[blobs_at : blobs_at + used]

    def blob(offset: int) -> bytes:
        (length,) = struct.unpack_from("<H", blobs, offset)
        assert offset + 2 + length <= used
        return blobs[offset + 2 : offset + 2 + length]

    def name(offset: int) -> str:
        text = blob(offset)
        assert text[-1:] == b"\0"
        return text[:-1].decode()

    extension, flags, parent, parent_index = struct.unpack_from(">4sI16s16s", head, 60)
    assert extension == b"PBX1"
    assert flags & 2 or (parent, parent_index) == (bytes(16), bytes(16))
    names, contents = struct.unpack_from(">256I", head, 2044), struct.unpack_from(">256I", head, 3068)
    configs = {name(key): blob(at) for key, at in zip(names, contents, strict=True) if key and at}
    drives = {}
    for number in range(1, 255):
        name_at, zero, recorded, exact, rest = struct.unpack_from(">IIQQQ", head, 4096 + 32 * number)
        assert zero == rest == 0
        if name_at and recorded:
            assert recorded % 512 == 0 and (exact == 0 or recorded - 512 < exact < recorded)
            drives[number] = Drive(name(name_at), recorded, exact or recorded)
    return Header(uuid, size, flags, drives, configs, (parent, parent_index))


# -- EXTENTS and DIGESTS --


def cluster_of(mask: int, blocks: bytes) -> bytes:
    """The 65536 bytes of a cluster from its stored blocks."""
    out, at = bytearray(CLUSTER), 0
    for bit in range(16):
        if mask >> bit & 1:
            out[bit * BLOCK : (bit + 1) * BLOCK] = blocks[at : at + BLOCK]
            at += BLOCK
    return bytes(out)


def cluster_digest(content: bytes) -> bytes:
    return blake3(content).digest()[:16]


class Stored(NamedTuple):
    """A cluster as an extent has it; ``at`` is the VMA offset of its first stored block."""

    drive: int
    cluster: int
    mask: int
    at: int
    content: bytes


def read_extents(stream: bytes, header: Header) -> Iterator[list[Stored]]:
    at = header.size
    while at < len(stream):
        head = stream[at : at + 512]
        magic, zero, blocks, uuid, md5 = struct.unpack_from(">4sHH16s16s", head)
        assert (magic, zero, uuid) == (b"VMAE", 0, header.uuid)
        assert hashlib.md5(head[:24] + bytes(16) + head[40:]).digest() == md5
        place, found, digest = at + 512, [], b""
        for mask, mark, drive, cluster in struct.iter_unpack(">HBBI", head[40:]):
            if drive:
                size = mask.bit_count() * BLOCK
                content = cluster_of(mask, stream[place : place + size])
                found.append(Stored(drive, cluster, mask, place, content))
                place += size
            elif mark == 0xB3:
                digest = struct.pack(">HI", mask, cluster)
        assert place == at + 512 + blocks * BLOCK <= len(stream)
        digests = b"".join(cluster_digest(one.content) for one in found if one.mask)
        assert blake3(digests).digest()[:6] == digest
        yield found
        at = place


# -- RULES FOR A READER: from the beginning to the end --


def read_through(stream: bytes) -> tuple[Header, dict[str, bytes], list[Stored]]:
    """The header, every drive, and every cluster in the order of the archive."""
    header = read_header(stream)
    assert header.flags == 1
    contents: dict[int, dict[int, bytes]] = {number: {} for number in header.drives}
    clusters = []
    for extent in read_extents(stream, header):
        for one in extent:
            assert one.cluster not in contents[one.drive], "a cluster occurs twice"
            contents[one.drive][one.cluster] = one.content
            clusters.append(one)
    drives = {}
    for number, drive in header.drives.items():
        assert sorted(contents[number]) == list(range(drive.clusters)), "a cluster is missing"
        whole = b"".join(contents[number][cluster] for cluster in range(drive.clusters))
        assert not any(whole[drive.size :])
        drives[drive.name] = whole[: drive.size]
    return header, drives, clusters


# -- ZSTD FRAMES --


class Frame(NamedTuple):
    at: int
    magic: int | None
    whole: bytes
    content: bytes


def frames_of(archive: bytes) -> Iterator[Frame]:
    """Every frame of the file, found by walking over it."""
    at = 0
    while at < len(archive):
        magic, length = struct.unpack_from("<II", archive, at)
        if magic & 0xFFFFFFF0 == 0x184D2A50:
            yield Frame(at, magic, archive[at : at + 8 + length], archive[at + 8 : at + 8 + length])
            at += 8 + length
            continue
        parameters = zstandard.get_frame_parameters(archive[at : at + 18])
        assert parameters.has_checksum and parameters.content_size != zstandard.CONTENTSIZE_UNKNOWN
        # No zstd frame of this size is longer than that.
        window = archive[at : at + 1024 + parameters.content_size * 257 // 256]
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        content = decompressor.decompress(window)
        end = at + len(window) - len(decompressor.unused_data)
        assert len(content) == parameters.content_size
        yield Frame(at, None, archive[at:end], content)
        at = end


# -- CLUSTER INDEX --


def index_content(frame: bytes, kind: int) -> bytes:
    magic, length, envelope, version, found, zero, size = struct.unpack_from("<II4sBBHI", frame)
    assert (magic, length, envelope) == (0x184D2A5B, len(frame) - 8, b"PBXI")
    assert (version, found, zero) == (1, kind, 0) and size <= (4 << 20 if kind == 1 else 64 << 20)
    content = zstandard.ZstdDecompressor().decompress(frame[20:], max_output_size=size)
    assert len(content) == size
    return content


class Segment:
    """The five tables of a segment."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.file_offset, self.vma_offset, frames, runs, stored = struct.unpack_from("<QQIII", content)
        at = 28

        def table(layout: str, count: int) -> list[tuple[Any, ...]]:
            nonlocal at
            size = struct.calcsize(layout) * count
            rows = list(struct.iter_unpack(layout, content[at : at + size]))
            at += size
            return rows

        self.frames = table("<II", frames)
        self.runs = table("<BBHII", runs)
        self.masks = [mask for (mask,) in table("<H", stored)]
        self.places = [place for (place,) in table("<I", stored)]
        self.digests = [digest for (digest,) in table("<16s", stored)]
        assert at == len(content)

    def find(self, drive: int, cluster: int) -> int | None:
        """The number of a stored cluster, -1 for a zero one, None for one that the segment does not speak of."""
        number = 0
        for run_drive, kind, zero, first, count in self.runs:
            assert zero == 0 and kind in (0, 1)
            if run_drive == drive and first <= cluster < first + count:
                return number + cluster - first if kind else -1
            number += count * kind
        return None

    def frame_of(self, place: int) -> tuple[int, int, int, int]:
        """File offset, compressed size, VMA offset and decompressed size of the frame that holds a VMA offset."""
        at, vma = self.file_offset, self.vma_offset
        for compressed, decompressed in self.frames:
            if vma <= place < vma + decompressed:
                return at, compressed, vma, decompressed
            at, vma = at + compressed, vma + decompressed
        raise AssertionError("the place lies outside the segment's frames")


class Directory:
    """The directory, found from the end of the file."""

    def __init__(self, archive: bytes) -> None:
        length, decompressed, _, rows, descriptor, number = struct.unpack("<IIIIBI", archive[-21:])
        assert (decompressed, descriptor, number) == (0, 0x80, 0x8F92EAB1)
        end = len(archive) - (8 + 12 * rows + 9)
        content = index_content(archive[end - length : end], 2)
        segments, ranges, text = struct.unpack_from("<III", content)
        places = struct.iter_unpack("<QII", content[12 : 12 + 16 * segments])
        at = 12 + 16 * segments
        self.ranges = list(struct.iter_unpack("<BxxxII", content[at : at + 12 * ranges]))
        self.about = json.loads(content[at + 12 * ranges :])
        assert at + 12 * ranges + text == len(content)
        self.segments, used = [], 0
        for offset, size, count in places:
            segment = Segment(index_content(archive[offset : offset + size], 1))
            self.segments.append((segment, self.ranges[used : used + count]))
            used += count
        assert used == ranges


# -- RULES FOR A READER: at any place --


def read_cluster(archive: bytes, directory: Directory, drive: int, cluster: int) -> bytes:
    for segment, ranges in directory.segments:
        if not any(one == drive and first <= cluster <= last for one, first, last in ranges):
            continue
        number = segment.find(drive, cluster)
        if number is None:
            continue
        if number < 0:
            return bytes(CLUSTER)
        place = segment.vma_offset + 512 * segment.places[number]
        at, compressed, vma, size = segment.frame_of(place)
        content = zstandard.ZstdDecompressor().decompress(archive[at : at + compressed], max_output_size=size)
        mask = segment.masks[number]
        found = cluster_of(mask, content[place - vma : place - vma + mask.bit_count() * BLOCK])
        assert cluster_digest(found) == segment.digests[number]
        return found
    raise AssertionError("no segment knows the cluster")


# -- the tests --


@pytest.fixture(scope="module", params=["64K", "256K"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specification")
    for name, content in (*DISKS.items(), *CONFIGS.items()):
        (folder / name).write_bytes(content)
    configs = [argument for name in CONFIGS for argument in ("-c", name)]
    same = ["--uuid", "00112233-4455-6677-8899-aabbccddeeff", "--time", "1700000000"]
    forms = {"a.vma.zst": ["--level", "1", "--frame-size", request.param], "a.vma": ["--compress", "none"]}
    for target, options in forms.items():
        assert pybackup("run", *DISKS, *configs, *options, *same, target, cwd=folder).code == 0
    return folder / "a.vma.zst"


def test_both_forms_are_the_same_bytes_and_hold_the_disks(archive: Path) -> None:
    frames = list(frames_of(archive.read_bytes()))
    stream = b"".join(frame.content for frame in frames if frame.magic is None)
    assert stream == archive.with_suffix("").read_bytes()
    header, drives, _ = read_through(stream)
    assert drives == DISKS
    assert header.configs == CONFIGS
    assert header.uuid == bytes.fromhex("00112233445566778899aabbccddeeff")


def test_the_index_finds_every_cluster(archive: Path) -> None:
    content = archive.read_bytes()
    stream = archive.with_suffix("").read_bytes()
    header = read_header(next(frames_of(content)).content)
    directory = Directory(content)
    rows = {row["id"]: row for row in directory.about["drives"]}
    contents = b"".join(segment.content for segment, _ in directory.segments)
    assert directory.about["segments"] == blake3(contents).hexdigest()[:32]
    assert directory.about["created"] == 1_700_000_000
    assert directory.about["unreadable"] == []
    assert [source["kind"] for source in directory.about["sources"]] == ["raw"] * len(DISKS)
    stored = [one for one in read_through(stream)[2] if one.mask]
    for number, drive in header.drives.items():
        disk = DISKS[drive.name]
        for cluster in range(drive.clusters):
            expected = disk[cluster * CLUSTER : (cluster + 1) * CLUSTER].ljust(CLUSTER, b"\0")
            assert read_cluster(content, directory, number, cluster) == expected
        mine = [one for one in stored if one.drive == number]
        assert (rows[number]["name"], rows[number]["size"]) == (drive.name, len(disk))
        assert rows[number]["stored_clusters"] == len(mine)
        assert rows[number]["zero_clusters"] == drive.clusters - len(mine)
        assert rows[number]["stored_bytes"] == sum(one.mask.bit_count() for one in mine) * BLOCK


def test_the_index_tells_what_the_extents_hold(archive: Path) -> None:
    directory = Directory(archive.read_bytes())
    _, _, clusters = read_through(archive.with_suffix("").read_bytes())
    told = []
    for segment, ranges in directory.segments:
        number = 0
        seen: dict[int, list[int]] = {}
        for drive, kind, _, first, count in segment.runs:
            seen.setdefault(drive, []).extend((first, first + count - 1))
            for cluster in range(first, first + count):
                if not kind:
                    told.append((drive, cluster))
                    continue
                place = segment.vma_offset + 512 * segment.places[number]
                told.append((drive, cluster, segment.masks[number], place, segment.digests[number]))
                number += 1
        assert number == len(segment.masks)
        assert ranges == [(drive, min(ends), max(ends)) for drive, ends in sorted(seen.items())]
    found = [
        (one.drive, one.cluster, one.mask, one.at, cluster_digest(one.content))
        if one.mask
        else (one.drive, one.cluster)
        for one in clusters
    ]
    assert told == found


def test_frames_and_seek_table_are_as_specified(archive: Path, request: pytest.FixtureRequest) -> None:
    frames = list(frames_of(archive.read_bytes()))
    table = frames[-1]
    assert table.magic == 0x184D2A5E
    rows = list(struct.iter_unpack("<III", table.content[:-9]))
    count, descriptor, number = struct.unpack("<IBI", table.content[-9:])
    assert (count, descriptor, number) == (len(rows), 0x80, 0x8F92EAB1)
    assert len(rows) == len(frames) - 1
    for frame, row in zip(frames, rows, strict=False):
        if frame.magic is None:
            assert row == (len(frame.whole), len(frame.content), int.from_bytes(frame.whole[-4:], "little"))
        else:
            assert (frame.magic, row) == (0x184D2A5B, (len(frame.whole), 0, 0))
    most = {"64K": 65536, "256K": 256 << 10}[request.node.callspec.params["archive"]]
    assert frames[0].content[:4] == b"VMA\0"
    assert all(len(frame.content) <= most for frame in frames[1:] if frame.magic is None)
    assert frames[-2].content[5] == 2  # the directory


def test_segments_end_where_the_specification_says(archive: Path, request: pytest.FixtureRequest) -> None:
    directory = Directory(archive.read_bytes())
    small_frames = request.node.callspec.params["archive"] == "64K"
    assert (len(directory.segments) > 1) == small_frames
    for segment, _ in directory.segments[:-1]:
        assert len(segment.frames) >= 1024 or len(segment.masks) >= 4096 or len(segment.runs) >= 8192
    for segment, _ in directory.segments:
        assert len(segment.frames) <= 2048 and len(segment.masks) <= 8192 and len(segment.runs) <= 16384
        for one, next_one in zip(segment.runs, segment.runs[1:], strict=False):
            assert (one[0], one[1], one[3] + one[4]) != (next_one[0], next_one[1], next_one[3]), "a run could be longer"
