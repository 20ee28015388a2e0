"""Frames of another archive, taken as they are."""

from __future__ import annotations

import random
from array import array

import pytest
from archives import decode, encode, frames_of, header_of, open_index

from pybackup.formats.archive import ArchiveEncoder, CopiedFrame, EncodedFrame
from pybackup.formats.cluster_index import RUN, RUN_STORED, SEGMENT_START
from pybackup.formats.cluster_lookup import Segment
from pybackup.formats.clusters import scan
from pybackup.formats.errors import FormatError
from pybackup.formats.vma import SlotRun
from pybackup.formats.vma_layout import CLUSTER_SIZE

NOISE = random.Random(3)
DISK = NOISE.randbytes(76 * CLUSTER_SIZE)


def only_segment(archive: bytes) -> Segment:
    index = open_index(archive)
    (place,) = index.directory.segments
    return index._read_segment(place)


def copied_frames(archive: bytes, segment: Segment) -> list[CopiedFrame]:
    """All frames of an archive of one drive, whose clusters are all full and in order."""
    found = []
    for group in segment.frame_groups(16):
        (place,) = group.frames
        assert group.is_exact
        content = archive[place.file_offset : place.file_offset + place.compressed]
        frame = EncodedFrame([content], len(content), place.decompressed, int.from_bytes(content[-4:], "little"))
        digests = [segment.stored(number).digest for number in range(group.first, group.end)]
        found.append(CopiedFrame(frame, [SlotRun(1, group.first, len(digests), 0xFFFF)], digests))
    return found


@pytest.mark.parametrize("frame_size", [1 << 16, 1 << 18, 3 << 18, 1 << 20])
def test_frames_go_over_as_they_are_and_the_archive_is_sound(frame_size: int) -> None:
    archive = encode({"disk": DISK}, frame_size=frame_size)
    frames = copied_frames(archive, only_segment(archive))
    NOISE.shuffle(frames)
    encoder = ArchiveEncoder(header_of({"disk": DISK}), level=1)
    compressor = encoder.compressor()
    out = [encoder.start()]
    for frame in frames:
        encoder.add_frame(frame)
    encoder.close_extent()
    for item in encoder.ready:
        out += [bytes(part) for part in encoder.commit(encoder.encode(item, compressor))]
    merged = b"".join((*out, *map(bytes, encoder.finish({}))))
    assert decode(merged, tolerant=True).damage == []
    assert decode(merged).drives == {"disk": DISK}
    ours = {bytes(frame.content) for frame in frames_of(merged)}
    assert all(bytes(frame.frame.pieces[0]) in ours for frame in frames)


def test_frames_and_other_clusters_do_not_mix_within_an_extent() -> None:
    archive = encode({"disk": DISK}, frame_size=1 << 18)
    frames = copied_frames(archive, only_segment(archive))
    encoder = ArchiveEncoder(header_of({"disk": DISK}), level=1, frame_size=1 << 18)
    compressor = encoder.compressor()
    out = [encoder.start()]
    for number, frame in enumerate(frames):
        (slot,) = frame.slots
        if number % 2:
            encoder.add_frame(frame)
        else:
            end = slot.first + slot.clusters
            encoder.add(1, slot.first, scan(DISK, slot.first * CLUSTER_SIZE, end * CLUSTER_SIZE))
    encoder.close_extent()
    for item in encoder.ready:
        out += [bytes(part) for part in encoder.commit(encoder.encode(item, compressor))]
    assert decode(b"".join((*out, *map(bytes, encoder.finish({}))))).drives == {"disk": DISK}


def test_extents_of_one_frame_hold_their_header_and_are_not_exact() -> None:
    segment = only_segment(encode({"disk": DISK[: 3 * CLUSTER_SIZE]}))
    (group,) = segment.frame_groups(16)
    assert (group.first, group.end, group.is_exact) == (0, 3, False)


def test_clusters_that_lie_in_two_frames_bring_both() -> None:
    content = _segment_content([(100, 40960), (100, 90112)], [(0, 0xFFFF), (128, 0xFFFF)])
    (group,) = Segment(content).frame_groups(16)
    assert (len(group.frames), group.first, group.end, group.is_exact) == (2, 0, 2, False)
    with pytest.raises(FormatError, match="outside its frames"):
        list(Segment(content).frame_groups(1))


@pytest.mark.parametrize("places", [[0, 64], [128, 0], [0, 0]])
def test_clusters_over_each_other_are_damage(places: list[int]) -> None:
    content = _segment_content([(100, 65536), (100, 131072)], [(place, 0xFFFF) for place in places])
    with pytest.raises(FormatError, match="one over the other"):
        list(Segment(content).frame_groups(16))


def _segment_content(frames: list[tuple[int, int]], clusters: list[tuple[int, int]]) -> bytes:
    """A segment with these (compressed, decompressed) frames, and stored clusters at (place / 512, mask)."""
    return b"".join(
        (
            SEGMENT_START.pack(0, 0, len(frames), 1, len(clusters)),
            array("I", [number for frame in frames for number in frame]).tobytes(),
            RUN.pack(1, RUN_STORED, 0, 0, len(clusters)),
            array("H", [mask for _, mask in clusters]).tobytes(),
            array("I", [place for place, _ in clusters]).tobytes(),
            bytes(16 * len(clusters)),
        )
    )
