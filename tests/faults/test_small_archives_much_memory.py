"""Archives of kilobytes that claim gigabytes: every command tells what is wrong, and stays far below 300 MiB."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from peak_memory import peak_of

from pybackup.formats import cluster_index as index
from pybackup.formats import vma
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.clusters import EMPTY_EXTENT_DIGEST
from pybackup.formats.vma import DriveInfo, Header

UUID = b"\x11" * 16
MOST = 250
"""MiB; 300 is promised."""
compress = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True).compress


def head(*drives: tuple[int, str, int]) -> bytes:
    return vma.encode_header(Header(UUID, 1000, tuple(DriveInfo(*drive) for drive in drives)))


def tail(directory: bytes) -> bytes:
    table = zs.SeekTable()
    table.add(0, 0, 0)
    table.add(len(directory), 0, 0)
    return directory + table.encode()


def directory(segments: bytes, ranges: bytes, text: bytes) -> bytes:
    counts = len(segments) // index.SEGMENT_ROW.size, len(ranges) // index.RANGE.size, len(text)
    return index.wrap(index.DIRECTORY, index.DIRECTORY_START.pack(*counts) + segments + ranges + text)


def zero_extent(slots: list[tuple[int, int, int]]) -> bytes:
    return vma.encode_extent_header(UUID, [vma.pack_slot(*slot) for slot in slots], 0, EMPTY_EXTENT_DIGEST)


SMALL = compress(head((1, "a", 1 << 30)))
ROOM = index.MAX_CONTENT[index.DIRECTORY] - index.MAX_ABOUT


def much_json() -> bytes:
    """Empty lists, of which each takes three bytes in the file and 64 in memory."""
    text = b'{"a":[' + b"[]," * ((index.MAX_ABOUT - 20) // 3) + b"[]]}"
    return SMALL + tail(directory(b"", b"", text))


def more_json_than_is_read() -> bytes:
    return SMALL + tail(directory(b"", b"", b'{"a":[' + b"[]," * (3 << 20) + b"[]]}"))


def many_ranges() -> bytes:
    count = ROOM // index.RANGE.size
    ranges = b"".join(index.RANGE.pack(2, number * 7919 % 65521, number) for number in range(65536))
    rows = index.SEGMENT_ROW.pack(100, 100, count)
    return SMALL + tail(directory(rows, (ranges * (count // 65536 + 1))[: count * index.RANGE.size], b"{}"))


def many_segments() -> bytes:
    return SMALL + tail(directory(index.SEGMENT_ROW.pack(0, 60, 0) * (ROOM // 16), b"", b"{}"))


def one_large_segment() -> bytes:
    """A segment of 4 MiB of frames of one byte, and clusters that lie in 65536 of them."""
    frames, stored = 65536 * 5, 60_000
    content = index.SEGMENT_START.pack(0, 0, frames, 1, stored) + index.FRAME_ROW.pack(1, 1) * frames
    content += index.RUN.pack(1, index.RUN_STORED, 0, 0, stored) + b"\xff\xff" * stored + bytes(20) * stored
    segment = index.wrap(index.SEGMENT, content[: 4 << 20] if len(content) > 4 << 20 else content)
    rows = index.SEGMENT_ROW.pack(len(SMALL2), len(segment), 1)
    return SMALL2 + segment + tail(directory(rows, index.RANGE.pack(1, 0, stored - 1), b"{}"))


SMALL2 = compress(head((1, "a", 60_000 << 16), (2, "b", 65536)))


def the_same_clusters_again_and_again() -> bytes:
    extents = zero_extent([(1, cluster, 0) for cluster in [0, 2] * 29])
    return SMALL + compress(extents * 16384) * 12


def clusters_all_over_the_drives() -> bytes:
    header = compress(head((1, "a", 256 << 40), (2, "b", 256 << 40)))
    numbers = [(drive, number * 32768 + 5, 0) for drive in (1, 2) for number in range(131072)]
    extents = b"".join(zero_extent(numbers[at : at + 58]) for at in range(0, len(numbers), 58))
    return header + b"".join(compress(extents[at : at + (1 << 20)]) for at in range(0, len(extents), 1 << 20))


def frames_of_nothing() -> bytes:
    return SMALL + compress(b"") * 100_000


def an_extent_in_pieces_of_a_byte() -> bytes:
    slots = [vma.pack_slot(1, cluster, 0xFFFF) for cluster in range(58)]
    extent = vma.encode_extent_header(UUID, slots, 58 * 16, b"digest") + bytes(70_000)
    return SMALL + b"".join(compress(extent[at : at + 1]) for at in range(len(extent)))


def index_frames_without_end() -> bytes:
    """One extent that waits, and large index frames behind it."""
    frame = zs.skippable(zs.INDEX_MAGIC, bytes(16 << 20))
    return SMALL + compress(zero_extent([(1, 0, 0)])) + frame * 12


def blobs_that_all_are_the_largest() -> bytes:
    configs = tuple((f"c{number}", bytes(65535)) for number in range(7))
    content = bytearray(vma.encode_header(Header(UUID, 0, (DriveInfo(1, "a", 65536),), configs)))
    return compress(bytes(content))


def frames_of_the_largest_size() -> bytes:
    """Whose content is one byte again and again: 8 MiB each, and one window of 128 MiB."""
    frame = compress(b"VMAE" * (2 << 20))
    windowed = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    ).compressobj()
    return SMALL + frame * 30 + windowed.compress(bytes(200 << 20)) + windowed.flush()


class Sparse(NamedTuple):
    """A file that is mostly a hole: its beginning, how long it is then made, and its end."""

    start: bytes
    length: int
    end: bytes = b""


def frames_that_lie_in_a_hole() -> Sparse:
    count = 40
    header = compress(head((1, "a", count << 16), (2, "b", 65536)))
    content = index.SEGMENT_START.pack(1 << 20, 20000, count, 1, count)
    content += index.FRAME_ROW.pack(16 << 20, 4096) * count + index.RUN.pack(1, 1, 0, 0, count)
    content += struct.pack("<H", 1) * count + b"".join(struct.pack("<I", at * 8) for at in range(count))
    segment = index.wrap(index.SEGMENT, content + bytes(16) * count)
    length = (1 << 20) + count * (16 << 20)
    rows = index.SEGMENT_ROW.pack(length, len(segment), 1)
    return Sparse(header, length, segment + tail(directory(rows, index.RANGE.pack(1, 0, count - 1), b"{}")))


def a_seek_table_that_is_a_hole() -> Sparse:
    size = 20_000_000 * 12 + 9
    start = compress(head((1, "a", 131072))) + compress(zero_extent([(1, 0, 0), (1, 1, 0)]))
    return Sparse(start + struct.pack("<II", zs.SEEK_TABLE_MAGIC, size), len(start) + 8 + size)


CASES: list[Callable[[], bytes | Sparse]] = [
    much_json,
    more_json_than_is_read,
    many_ranges,
    many_segments,
    one_large_segment,
    the_same_clusters_again_and_again,
    clusters_all_over_the_drives,
    frames_of_nothing,
    an_extent_in_pieces_of_a_byte,
    index_frames_without_end,
    blobs_that_all_are_the_largest,
    frames_of_the_largest_size,
    frames_that_lie_in_a_hole,
    a_seek_table_that_is_a_hole,
]


def write(path: Path, content: bytes | Sparse) -> None:
    with path.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
            return
        file.write(content.start)
        file.truncate(content.length)
        file.seek(0, 2)
        file.write(content.end)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_no_command_takes_what_is_claimed(case: Callable[[], bytes | Sparse], tmp_path: Path) -> None:
    archive = tmp_path / "x.vma.zst"
    write(archive, case())
    commands = (["verify", archive], ["info", archive], ["restore", archive, "--to", f"a={tmp_path / 'out'}"])
    for command in commands:
        done = peak_of(*command)
        assert done.mib < MOST, f"{command[0]} took {done.mib:.0f} MiB"
        # A new file of 256 TiB is more than most filesystems hold.
        assert done.code in ((0, 4) if command[0] == "info" else (4, 5)), (command[0], done)
        assert "Traceback" not in done.err and "bug" not in done.err
        assert len(done.err.splitlines()) < 1100
