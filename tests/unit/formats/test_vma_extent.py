from __future__ import annotations

import hashlib
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.formats import vma
from pybackup.formats.clusters import EMPTY_EXTENT_DIGEST
from pybackup.formats.errors import FormatError
from pybackup.formats.vma import DriveInfo, Header, Slot, SlotRun

UUID = bytes(range(16))
HEADER = Header(uuid=UUID, created=0, drives=(DriveInfo(1, "a", 100 * 65536), DriveInfo(3, "b", 65536 + 4097)))
FOREIGN = Header(uuid=UUID, created=0, drives=HEADER.drives, extent_digests=False)
DIGEST = b"digest"


def extent(slots: list[Slot], digest: bytes | None = DIGEST, blocks: int | None = None) -> bytes:
    count = sum(slot.mask.bit_count() for slot in slots) if blocks is None else blocks
    return vma.encode_extent_header(UUID, vma.pack_slots(vma.runs_of_slots(slots)), count, digest)


def signed(content: bytearray) -> bytes:
    content[24:40] = bytes(16)
    content[24:40] = hashlib.md5(content).digest()
    return bytes(content)


@pytest.mark.parametrize(
    "slots",
    [
        [],
        [Slot(1, 0, 0xFFFF)],
        [Slot(1, 99, 0x8001), Slot(3, 1, 0b11), Slot(1, 0, 0), Slot(3, 0, 0xFFFF)],
        [Slot(1, number, number) for number in range(58)],
    ],
)
def test_what_was_encoded_is_decoded(slots: list[Slot]) -> None:
    content = extent(slots)
    assert len(content) == 512
    decoded = vma.decode_extent_header(content, HEADER, 0)
    assert decoded.slots == tuple(slots)
    assert decoded.runs == vma.runs_of_slots(slots)
    assert decoded.data_size == 4096 * sum(slot.mask.bit_count() for slot in slots)
    assert decoded.digest == DIGEST


def test_the_digest_lies_where_the_specification_says() -> None:
    content = extent([Slot(1, 0, 1)], b"abcdef")
    assert content[40 + 58 * 8 :] == b"ab\xb3\x00cdef"


@pytest.mark.parametrize("count", [1, 57, 58, 59, 100])
def test_zero_extents_are_the_same_as_one_by_one(count: int) -> None:
    content = vma.encode_zero_extents(UUID, 1, 0, count, EMPTY_EXTENT_DIGEST)
    one_by_one = [
        extent([Slot(1, number, 0) for number in range(at, min(at + 58, count))], EMPTY_EXTENT_DIGEST)
        for at in range(0, count, 58)
    ]
    assert content == b"".join(one_by_one)


def test_a_full_extent_of_zero_clusters_in_a_row_is_a_run() -> None:
    decoded = vma.decode_extent_header(vma.encode_zero_extents(UUID, 1, 5, 58, EMPTY_EXTENT_DIGEST), HEADER, 0)
    assert (decoded.slots, decoded.runs) == ((), (SlotRun(1, 5, 58, 0),))


def test_a_zero_extent_with_a_wrong_digest_is_no_run() -> None:
    decoded = vma.decode_extent_header(vma.encode_zero_extents(UUID, 1, 5, 58, b"wrong!"), HEADER, 0)
    assert len(decoded.slots) == 58
    assert len(decoded.slots) == 58


@pytest.mark.parametrize(
    "slots, message",
    [
        ([Slot(2, 0, 1)], "names drive 2"),
        ([Slot(255, 0, 1)], "names drive 255"),
        ([Slot(1, 100, 0)], "behind the end"),
        ([Slot(1, 0xFFFFFFFF, 0)], "behind the end"),
        ([Slot(3, 2, 0)], "behind the end"),
        ([Slot(3, 1, 0b100)], "stores blocks behind the end"),
        ([Slot(1, number, 0) for number in range(43, 101)], "behind the end"),
    ],
)
def test_what_no_drive_has_is_refused(slots: list[Slot], message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        vma.decode_extent_header(extent(slots), HEADER, 512)
    assert caught.value.offset == 512


def test_a_whole_last_cluster_may_be_stored() -> None:
    assert vma.decode_extent_header(extent([Slot(3, 1, 0xFFFF)]), HEADER, 0).data_size == 65536


@pytest.mark.parametrize("blocks", [0, 1, 3, 0xFFFF])
def test_the_block_count_must_agree_with_the_masks(blocks: int) -> None:
    with pytest.raises(FormatError, match="blocks"):
        vma.decode_extent_header(extent([Slot(1, 0, 0b11)], blocks=blocks), HEADER, 0)


def test_the_promised_digest_must_be_there() -> None:
    with pytest.raises(FormatError, match="no digest"):
        vma.decode_extent_header(extent([Slot(1, 0, 0)], digest=None), HEADER, 0)
    assert vma.decode_extent_header(extent([Slot(1, 0, 0)], digest=None), FOREIGN, 0).digest is None


def test_every_flipped_byte_is_found() -> None:
    content = extent([Slot(1, number, 3) for number in range(58)])
    for at in range(512):
        broken = bytearray(content)
        broken[at] ^= 0xFF
        with pytest.raises(FormatError):
            vma.decode_extent_header(bytes(broken), HEADER, 0)


def test_an_extent_of_another_archive_is_refused() -> None:
    content = bytearray(extent([]))
    content[8] ^= 1
    with pytest.raises(FormatError, match="another archive"):
        vma.decode_extent_header(signed(content), HEADER, 0)


def test_as_proxmox_does_entries_of_device_0_are_skipped_and_59_are_read() -> None:
    content = bytearray(512)
    struct.pack_into(">4sHH16s", content, 0, b"VMAE", 0, 1, UUID)
    for number in range(59):
        # mask, byte 2 (whatever it is), device, cluster
        entry = (0xABCD, 0x77, 0, 123) if number % 2 else (int(number == 0), 0x55, 1, number)
        struct.pack_into(">HBBI", content, 40 + 8 * number, *entry)
    decoded = vma.decode_extent_header(signed(content), FOREIGN, 0)
    assert decoded.slots == tuple(Slot(1, number, int(number == 0)) for number in range(0, 59, 2))


SLOTS = st.builds(Slot, st.sampled_from([1, 3]), st.integers(0, 4), st.sampled_from([0, 1, 0xFFFF]))


@given(st.lists(SLOTS, max_size=58))
def test_runs_are_the_slots(slots: list[Slot]) -> None:
    runs = vma.runs_of_slots(slots)
    assert [Slot(run.drive_id, run.first + at, run.mask) for run in runs for at in range(run.clusters)] == slots
    for run, following in pairwise(runs):
        assert (run.drive_id, run.first + run.clusters, run.mask) != (following.drive_id, *following[1::2])
