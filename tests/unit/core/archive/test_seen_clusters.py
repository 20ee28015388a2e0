from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from pybackup.core.archive.seen_clusters import PIECE_CLUSTERS, SeenClusters

SIZE = 2 * PIECE_CLUSTERS + 10
EDGES = [0, PIECE_CLUSTERS - 1, PIECE_CLUSTERS, 2 * PIECE_CLUSTERS, SIZE - 1]
places = st.one_of(st.integers(0, SIZE - 1), st.sampled_from(EDGES))
steps = st.lists(st.tuples(st.booleans(), places, st.sampled_from([1, 2, 58, PIECE_CLUSTERS, SIZE])), max_size=12)


@given(steps=steps)
def test_it_is_a_set(steps: list[tuple[bool, int, int]]) -> None:
    seen, model = SeenClusters(SIZE), bytearray(SIZE)
    for adds, first, count in steps:
        count = min(count, SIZE - first)
        if adds:
            already = [at for start, number in seen.already(first, count) for at in range(start, start + number)]
            assert already == [at for at in range(first, first + count) if model[at]]
            assert seen.add(first, count) == (not any(model[first : first + count]))
            model[first : first + count] = b"\1" * count
        else:
            seen.remove(first)
            model[first] = 0
    missing = bytearray(b"\1" * SIZE)
    for first, count in seen.missing():
        assert count > 0
        assert missing[first : first + count] == b"\1" * count
        missing[first : first + count] = bytes(count)
    assert missing == model


def test_a_huge_drive_costs_nothing_until_clusters_are_seen() -> None:
    tracemalloc.start()
    seen = SeenClusters(1 << 32)
    for first in range(0, 1 << 24, PIECE_CLUSTERS // 2):
        seen.add(first, PIECE_CLUSTERS // 2)
    assert list(seen.missing()) == [(1 << 24, (1 << 32) - (1 << 24))]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
