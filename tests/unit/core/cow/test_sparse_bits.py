"""The bitmap of very large disks does what bitarray does."""

from __future__ import annotations

import tracemalloc

import pytest
from bitarray import bitarray
from hypothesis import given
from hypothesis import strategies as st

from pybackup.core.cow import sparse_bits
from pybackup.core.cow.claims import Claims
from pybackup.core.cow.sparse_bits import SparseBits

sizes = st.integers(1, 100)
steps = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.booleans()), max_size=20)


@given(size=sizes, changes=steps)
def test_it_is_a_bitarray(size: int, changes: list[tuple[int, int, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_bits, "PIECE_BITS", 16)
        bits, model = SparseBits(size), bitarray([True] * size)
        for one, other, value in changes:
            first, end = sorted((min(one, size), min(other, size)))
            bits[first:end] = value
            model[first:end] = value
            assert (bits.any(), bits.count()) == (model.any(), model.count())
            for wanted in (True, False):
                assert bits.find(wanted) == model.find(wanted)
                assert bits.find(wanted, first, end) == model.find(wanted, first, end)


def test_a_disk_of_256_tib_costs_little_until_guests_write_all_over_it() -> None:
    tracemalloc.start()
    try:
        copy = Claims(256 << 40)
        cluster = 0
        while (found := copy.next_dirty(cluster)) is not None:
            claimed = copy.claim(found, min(copy.clusters, found + (1 << 24) + 5))
            assert claimed is not None
            copy.settle(claimed, copied=True)
            cluster = claimed.end
        assert copy.is_finished
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
