from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pybackup.formats.clusters import (
    ClusterRun,
    cluster_digest,
    expand,
    extent_digest,
    mask_within,
    scan,
    stored_bytes,
    stored_ranges,
    zero_run,
)

masks = st.integers(0, 0xFFFF)


def content_for(mask: int) -> bytes:
    """A cluster whose non-zero blocks are the mask's: each has one byte that is not zero."""
    blocks = [bytes(4096)] * 16
    for number in range(16):
        if mask >> number & 1:
            blocks[number] = bytes(number * 100) + bytes([number + 1]) + bytes(4095 - number * 100)
    return b"".join(blocks)


def stored(run: ClusterRun) -> bytes:
    return b"".join(bytes(memoryview(part.buffer)[part.start : part.end]) for part in run.parts)


def expanded(runs: Iterable[ClusterRun]) -> bytes:
    """What the clusters of some runs hold, each put together by itself."""
    out = []
    for run in runs:
        size = 4096 * run.mask.bit_count()
        blocks = stored(run)
        assert len(blocks) == size * run.clusters
        out += [expand(run.mask, blocks[number * size : (number + 1) * size]) for number in range(run.clusters)]
    return b"".join(out)


@given(found=st.lists(st.one_of(st.just(0), st.just(0xFFFF), masks), max_size=6))
def test_what_was_scanned_can_be_put_together_again(found: list[int]) -> None:
    contents = [content_for(mask) for mask in found]
    runs = scan(b"".join(contents))
    assert [run.mask for run in runs for _ in range(run.clusters)] == found
    assert expanded(runs) == b"".join(contents)
    assert [digest for run in runs for digest in run.digests] == [cluster_digest(one) for one in contents if any(one)]
    # Runs are as long as they can be, and only clusters that are stored alike make one.
    assert all(run.clusters == 1 or run.mask in (0, 0xFFFF) for run in runs)
    assert all(one.mask != following.mask or one.mask not in (0, 0xFFFF) for one, following in pairwise(runs))


@pytest.mark.parametrize("start, end", [(0, 0), (65536, 3 * 65536), (65536, 150_000), (131_072, 200_001)])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_part_of_a_buffer_is_scanned_like_a_buffer(start: int, end: int, kind: type) -> None:
    content = b"".join(content_for(mask) for mask in (0xFFFF, 0, 0x8001)) + b"x" * 3393
    found = scan(kind(content), start, end)
    assert [run._replace(parts=()) for run in found] == [run._replace(parts=()) for run in scan(content[start:end])]
    assert expanded(found) == expanded(scan(content[start:end]))


@pytest.mark.parametrize("mask", [0, 0xFFFF])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_in_two_is_the_same_clusters(mask: int, at: int) -> None:
    content = b"".join(content_for(mask)[:-1] + bytes([bool(mask) * number]) for number in range(1, 5))
    (run,) = scan(content)
    before, behind = run.cut(at)
    assert (before.clusters, behind.clusters) == (at, 4 - at)
    assert expanded([before, behind]) == content
    assert (*before.digests, *behind.digests) == tuple(run.digests)


@given(mask=masks)
def test_stored_ranges_are_the_masks_bits_neighbours_joined(mask: int) -> None:
    ranges = list(stored_ranges(mask))
    blocks = [block for start, end in ranges for block in range(start // 4096, end // 4096)]
    assert blocks == [block for block in range(16) if mask >> block & 1]
    assert all(before[1] < after[0] for before, after in pairwise(ranges))


@given(mask=masks, size=st.integers(0, 3 * 65536))
def test_stored_bytes_are_those_within_the_masks_ranges(mask: int, size: int) -> None:
    ranges = [(at + low, at + high) for at in range(0, 3 * 65536, 65536) for low, high in stored_ranges(mask)]
    assert stored_bytes(mask, size) == sum(max(0, min(high, size) - low) for low, high in ranges)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 65535, 65536, 65537, 200_001])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_partial_last_cluster_is_filled_with_zeros(size: int, kind: type) -> None:
    assert expanded(scan(kind(b"x" * size))) == (b"x" * size).ljust(-(-size // 65536) * 65536, b"\0")


def test_zero_clusters_in_a_row_are_one_run() -> None:
    assert scan(bytes(65536 * 3 - 5)) == [zero_run(3)]
    assert scan(b"") == []


def test_digests_are_what_the_specification_says() -> None:
    content = content_for(0x8001)
    assert cluster_digest(content) == blake3(content).digest()[:16]
    assert extent_digest([b"a" * 16, b"b" * 16]) == blake3(b"a" * 16 + b"b" * 16).digest()[:6]


@pytest.mark.parametrize(
    "size, mask", [(1, 1), (4096, 1), (4097, 3), (61441, 0xFFFF), (65536, 0xFFFF), (1 << 40, 0xFFFF)]
)
def test_mask_within(size: int, mask: int) -> None:
    assert mask_within(size) == mask
