from __future__ import annotations

from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pybackup.formats.clusters import (
    ZERO,
    Cluster,
    cluster_digest,
    expand,
    extent_digest,
    mask_within,
    scan,
    stored_ranges,
)

masks = st.integers(0, 0xFFFF)


def content_for(mask: int) -> bytes:
    """A cluster whose non-zero blocks are the mask's: each has one byte that is not zero."""
    blocks = [bytes(4096)] * 16
    for number in range(16):
        if mask >> number & 1:
            blocks[number] = bytes(number * 100) + bytes([number + 1]) + bytes(4095 - number * 100)
    return b"".join(blocks)


def stored(cluster: Cluster) -> bytes:
    return b"".join(bytes(memoryview(part.buffer)[part.start : part.end]) for part in cluster.parts)


@given(mask=masks)
def test_expand_is_the_inverse_of_scan(mask: int) -> None:
    content = content_for(mask)
    (cluster,) = scan(content)
    assert cluster.mask == mask
    assert len(stored(cluster)) == 4096 * mask.bit_count()
    assert expand(mask, stored(cluster)) == content
    assert cluster.digest == (cluster_digest(content) if mask else b"")


@given(mask=masks)
def test_stored_ranges_are_the_masks_bits_neighbours_joined(mask: int) -> None:
    ranges = list(stored_ranges(mask))
    blocks = [block for start, end in ranges for block in range(start // 4096, end // 4096)]
    assert blocks == [block for block in range(16) if mask >> block & 1]
    assert all(before[1] < after[0] for before, after in pairwise(ranges))


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 65535, 65536, 65537, 200_001])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_partial_last_cluster_is_filled_with_zeros(size: int, kind: type) -> None:
    clusters = scan(kind(b"x" * size))
    assert len(clusters) == -(-size // 65536)
    content = b"".join(expand(cluster.mask, stored(cluster)) for cluster in clusters)
    assert content == (b"x" * size).ljust(len(clusters) * 65536, b"\0")


def test_zero_clusters_are_the_one_zero_cluster() -> None:
    assert scan(bytes(65536 * 3 - 5)) == [ZERO, ZERO, ZERO]
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
