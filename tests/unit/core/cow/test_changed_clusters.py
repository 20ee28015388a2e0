"""Sets of changed clusters against plain sets: what is missing would be lost, what is too much is only read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.core.cow import changed_clusters
from pybackup.core.cow.changed_clusters import ChangedClusters, PieceRoom, Union
from pybackup.core.device import CLUSTER_SIZE

CLUSTERS = 3 * 16 + 5
Ranges = list[tuple[int, int]]
RANGES = st.lists(
    st.tuples(st.integers(0, CLUSTERS - 1), st.integers(1, 40)).map(lambda one: (one[0], min(CLUSTERS, sum(one)))),
    max_size=12,
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed_clusters, "PIECE_CLUSTERS", 16)


def marked(ranges: Ranges, room: PieceRoom) -> ChangedClusters:
    changed = ChangedClusters(CLUSTERS, room)
    for first, end in ranges:
        changed.mark(first, end)
    return changed


def contents(*sets: ChangedClusters) -> set[int]:
    union, found, at = Union(sets), set(), 0
    while at < CLUSTERS:
        end, changed = union.run_at(at)
        assert at < end <= CLUSTERS
        found |= set(range(at, end)) if changed else set()
        at = end
    assert union.size == len(found) * CLUSTER_SIZE
    return found


def model(ranges: Ranges) -> set[int]:
    return {cluster for first, end in ranges for cluster in range(first, end)}


@given(RANGES, RANGES)
def test_what_is_marked_is_found_and_nothing_else(one: Ranges, other: Ranges) -> None:
    room = PieceRoom()
    before, after = marked(one, room), marked(other, room)
    assert contents(before) == model(one)
    assert contents(before, after) == model(one) | model(other)
    before.take_in(after)
    assert contents(before) == model(one) | model(other)
    assert room.left + len(before._pieces) == changed_clusters.MOST_PIECES
    before.drop()
    assert room.left == changed_clusters.MOST_PIECES


@given(RANGES, RANGES, st.integers(0, 3))
def test_without_room_more_is_called_changed_and_never_less(one: Ranges, other: Ranges, pieces: int) -> None:
    room = PieceRoom(pieces)
    before, after = marked(one, room), marked(other, room)
    assert contents(before) >= model(one) and contents(before, after) >= model(one) | model(other)
    assert len(before._pieces) + len(after._pieces) + room.left == pieces
    coarse = {
        cluster
        for number in {cluster // 16 for cluster in model(one)}
        for cluster in range(CLUSTERS)
        if cluster // 16 == number
    }
    assert contents(before) <= coarse
    before.coarsen()
    assert contents(before) == coarse and not before._pieces
    before.take_in(after)
    assert contents(before) >= model(one) | model(other)


def test_a_disk_that_is_written_from_one_end_to_the_other_takes_no_memory() -> None:
    changed = ChangedClusters(CLUSTERS, PieceRoom(1))
    for cluster in range(CLUSTERS):
        changed.mark(cluster, cluster + 1)
    assert len(changed._pieces) <= 1 and contents(changed) == set(range(CLUSTERS))


def test_the_largest_disk_is_told_of_in_large_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    clusters = 1 << 32
    changed = ChangedClusters(clusters, PieceRoom())
    changed.mark(clusters - 1, clusters)
    union, at, steps = Union([changed]), 0, 0
    while not (run := union.run_at(at))[1]:
        at, steps = run[0], steps + 1
    assert (at, run) == (clusters - 1, (clusters, True)) and steps < 200
    changed.mark(0, clusters)
    assert not changed._pieces and union.size == clusters * CLUSTER_SIZE
