from __future__ import annotations

import struct

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.formats import cluster_index as index
from pybackup.formats import cluster_lookup as lookup
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.errors import FormatError
from pybackup.formats.vma import Slot, SlotRun, runs_of_slots

slots = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 30), st.sampled_from([0, 0, 1, 0x8001, 0xFFFF])),
    max_size=58,
    unique_by=lambda slot: slot[:2],
)


def digest_of(slot: Slot) -> bytes:
    return struct.pack("<BxxxIQ", slot.drive_id, slot.cluster, slot.mask)


def build(extents: list[list[Slot]], file_offset: int = 100, vma_offset: int = 12800) -> index.IndexBuilder:
    """An index of these extents, each in one frame half its size."""
    builder = index.IndexBuilder(file_offset, vma_offset)
    for extent in extents:
        builder.add_extent(runs_of_slots(extent), [digest_of(slot) for slot in extent if slot.mask])
        size = 512 + 4096 * sum(slot.mask.bit_count() for slot in extent)
        builder.add_frame(size // 2, size)
    return builder


@settings(deadline=None)
@given(found=st.lists(slots, max_size=4))
def test_every_cluster_is_found_where_it_lies(found: list[list[tuple[int, int, int]]]) -> None:
    once = {slot[:2]: (number, slot) for number, extent in enumerate(found) for slot in extent}
    extents = [[Slot(*slot) for slot in extent if once[slot[:2]][0] == number] for number, extent in enumerate(found)]
    segment = lookup.Segment(build(extents).take_segment())
    vma_at, file_at = 12800, 100
    for extent in extents:
        place = vma_at + 512
        size = 512 + 4096 * sum(slot.mask.bit_count() for slot in extent)
        for slot in extent:
            run = segment.run_at(slot.drive_id, slot.cluster)
            assert run is not None
            left, kind, number = run
            assert left >= 1
            assert kind == (index.RUN_STORED if slot.mask else index.RUN_ZERO)
            if slot.mask:
                assert segment.stored(number) == lookup.StoredCluster(place, slot.mask, digest_of(slot))
                assert segment.frame_of(place) == lookup.FramePlace(file_at, size // 2, vma_at, size)
                place += 4096 * slot.mask.bit_count()
        vma_at += size
        file_at += size // 2
    assert segment.compressed_size == file_at - 100
    known = {slot[:2] for extent in extents for slot in extent}
    for drive_id in range(1, 4):
        for cluster in range(32):
            assert (segment.run_at(drive_id, cluster) is not None) == ((drive_id, cluster) in known)
    with pytest.raises(FormatError):
        segment.frame_of(vma_at)


def test_counts_and_zero_runs() -> None:
    builder = build([[Slot(1, 0, 3), Slot(1, 1, 0)]])
    builder.add_zero_extents(1, 2, 580, 10 * 512)
    builder.add_frame(20, 10 * 512)
    assert builder.counts == {1: index.DriveCounts(1, 581, 8192)}
    segment = lookup.Segment(builder.take_segment())
    assert list(segment.runs) == [(1, index.RUN_STORED, 0, 1), (1, index.RUN_ZERO, 1, 581)]
    assert segment.run_at(1, 581) == (1, index.RUN_ZERO, -1)
    assert segment.run_at(1, 582) is None
    assert segment.blocks_in(0, 1) == 2


def test_a_terabyte_of_holes_costs_almost_nothing() -> None:
    builder = index.IndexBuilder()
    for first in range(0, 1 << 24, 118_784):
        count = min(118_784, (1 << 24) - first)
        builder.add_zero_extents(1, first, count, -(-count // 58) * 512)
        builder.add_frame(1000, -(-count // 58) * 512)
    assert len(builder.take_segment()) < 2000


def test_a_segment_is_full_long_before_it_is_overdue() -> None:
    builder = index.IndexBuilder()
    extents = 0
    while not builder.segment_is_full:
        builder.add_extent([SlotRun(1, 58 * extents, 58, 1)], [bytes(16)] * 58)
        extents += 1
    assert extents == -(-index.MAX_STORED // 58)
    while not builder.segment_is_overdue:
        builder.add_extent([SlotRun(1, 58 * extents, 58, 1)], [bytes(16)] * 58)
        extents += 1
    assert extents > 2 * index.MAX_STORED // 58
    builder.forget_segment()
    assert builder.segment_is_empty
    assert builder.counts[1].stored_clusters == extents * 58


def directory(segments: int = 2) -> tuple[index.IndexBuilder, bytes]:
    builder = index.IndexBuilder(100, 12800)
    for number in range(segments):
        runs = [SlotRun(1, number, 1, 1), SlotRun(2, 10 * number, 1, 0), SlotRun(2, 10 * number + 5, 1, 0)]
        builder.add_extent(runs, [bytes(16)])
        builder.add_frame(1000, 4608)
        builder.take_segment()
        builder.segment_written(50)
    return builder, builder.directory({"tool": "x", "drives": []})


def test_the_directory_comes_back() -> None:
    decoded = lookup.Directory.decode(directory()[1])
    assert decoded.about == {"tool": "x", "drives": []}
    assert tuple(decoded.segments) == (
        lookup.SegmentPlace(1100, 50, ((1, 0, 0), (2, 0, 5))),
        lookup.SegmentPlace(2150, 50, ((1, 1, 1), (2, 10, 15))),
    )
    assert list(decoded.covering(2, 5)) == [next(decoded.segments)]
    assert list(decoded.covering(2, 7)) == []
    assert list(decoded.covering(3, 0)) == []


@given(content=st.binary(max_size=200))
def test_arbitrary_contents_are_damage_or_an_index(content: bytes) -> None:
    for decode in (lookup.Segment, lookup.Directory.decode):
        try:
            decode(content)
        except FormatError:
            continue


@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 100))
def test_changed_contents_are_damage_or_an_index(at: int, value: int, cut: int) -> None:
    segment = build([[Slot(1, number, 3) for number in range(58)]]).take_segment()
    for content, decode in ((segment, lookup.Segment), (directory()[1], lookup.Directory.decode)):
        changed = bytearray(content)
        changed[at % len(changed)] = value
        for variant in (bytes(changed), content[:cut], content + bytes(cut + 1)):
            try:
                decode(variant)
            except FormatError:
                continue


def lying_start(**changes: int) -> bytes:
    numbers = {"file": 0, "vma": 0, "frames": 0, "runs": 0, "stored": 0} | changes
    return index.SEGMENT_START.pack(*numbers.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        lying_start(frames=0xFFFFFFFF),
        lying_start(stored=1),
        lying_start(runs=1) + index.RUN.pack(1, 2, 0, 0, 1),
        lying_start(runs=1) + index.RUN.pack(1, index.RUN_ZERO, 0, 0, 0),
        lying_start(runs=1) + index.RUN.pack(1, index.RUN_STORED, 0, 0, 1),
    ],
)
def test_a_segment_that_cannot_be_is_refused(content: bytes) -> None:
    with pytest.raises(FormatError):
        lookup.Segment(content)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":' + b"1" * 10_000 + b"}"])
def test_a_directory_whose_text_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        lookup.Directory.decode(index.DIRECTORY_START.pack(0, 0, len(text)) + text)


# -- the envelope ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [index.SEGMENT, index.DIRECTORY])
@pytest.mark.parametrize("content", [b"", b"x", bytes(100_000)])
def test_an_envelope_comes_back(kind: int, content: bytes) -> None:
    frame = index.wrap(kind, content)
    assert zs.SKIPPABLE_HEADER.unpack_from(frame) == (zs.INDEX_MAGIC, len(frame) - 8)
    assert index.unwrap(frame, 0) == (kind, content)


def test_every_flipped_byte_of_an_envelope_is_found_or_harmless() -> None:
    content = bytes(range(256)) * 3
    frame = index.wrap(index.SEGMENT, content)
    for at in range(8, len(frame)):
        broken = bytearray(frame)
        broken[at] ^= 0xFF
        try:
            assert index.unwrap(broken, 0) == (index.SEGMENT, content)
        except FormatError:
            continue
    for size in range(len(frame)):
        with pytest.raises(FormatError):
            index.unwrap(frame[:size], 0)


def envelope(claimed: int, compressed: bytes) -> bytes:
    return zs.skippable(zs.INDEX_MAGIC, index.ENVELOPE.pack(b"PBXI", 1, index.DIRECTORY, 0, claimed) + compressed)


def test_an_envelope_that_claims_more_than_it_holds_is_refused() -> None:
    size = 64 << 20
    header_only = zs.FRAME_MAGIC + b"\xa4" + struct.pack("<I", size) + b"\x01\x00\x00" + bytes(4)
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes((64 << 20) + 1))
    small = zstandard.ZstdCompressor(write_checksum=True).compress(b"x" * 100)
    for frame in (
        envelope(size, header_only),
        envelope((64 << 20) + 1, bomb),
        envelope(99, small),
        envelope(101, small),
    ):
        with pytest.raises(FormatError, match="index frame"):
            index.unwrap(frame, 0)


def test_a_later_version_is_told_as_such() -> None:
    frame = bytearray(index.wrap(index.SEGMENT, b"x"))
    frame[12] = 2
    with pytest.raises(FormatError, match="version 2"):
        index.unwrap(frame, 0)
