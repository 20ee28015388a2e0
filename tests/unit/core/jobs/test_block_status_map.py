from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import run
from wild import Weather, WildDevice

from pybackup.core.device import CLUSTER_SIZE, BlockStatus
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.jobs.block_status_map import BlockStatusMap


class ToldDevice(MemoryDevice):
    """Describes itself with the extents given, (length, zero), as far as they go."""

    def __init__(self, extents: Sequence[tuple[int, bool]]) -> None:
        super().__init__(sum(length for length, _ in extents))
        self._ends = [sum(length for length, _ in extents[: number + 1]) for number in range(len(extents))]
        self._zeros = [zero for _, zero in extents]

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        out, at = [], offset
        for end, zero in zip(self._ends, self._zeros, strict=True):
            if at < min(end, offset + length):
                stop = min(end, offset + length)
                out.append(BlockStatus(at, stop - at, zero=zero, hole=zero))
                at = stop
        return out


async def runs_of(device: MemoryDevice | WildDevice) -> list[tuple[int, int, bool]]:
    status, runs, at = BlockStatusMap(device), [], 0
    clusters = -(-device.size // CLUSTER_SIZE)
    while at < clusters:
        end, zero = await status.run_at(at)
        assert at < end <= clusters
        runs.append((at, end, zero))
        at = end
    return runs


K = CLUSTER_SIZE


@pytest.mark.parametrize(
    "extents, runs",
    [
        ([(3 * K, True)], [(0, 3, True)]),
        ([(K + 1, True), (2 * K - 1, False)], [(0, 1, True), (1, 3, False)]),
        ([(K - 1, False), (2 * K + 1, True)], [(0, 1, False), (1, 3, True)]),
        ([(K + 5, True), (1, False), (2 * K - 6, True)], [(0, 1, True), (1, 2, False), (2, 3, True)]),
        ([(K + 7, True), (K - 7, True), (1, True)], [(0, 3, True)]),
        ([(5, True), (K - 5, False)], [(0, 1, False)]),
        ([(K, False), (1, True)], [(0, 1, False), (1, 2, True)]),
        ([(K, True), (1, False)], [(0, 1, True), (1, 2, False)]),
        ([(100, True), (100, False), (100, True), (100, False)], [(0, 1, False)]),
    ],
)
def test_only_whole_clusters_are_zero(extents: list[tuple[int, bool]], runs: list[tuple[int, int, bool]]) -> None:
    assert run(runs_of(ToldDevice(extents))) == runs


@given(st.integers(0, 2**32), st.integers(1, 12 * K))
def test_whatever_a_device_answers_no_data_is_called_zero(seed: int, size: int) -> None:
    draw = Random(seed)
    content = b"".join(draw.choice([bytes(4096), b"x" * 4096]) for _ in range(-(-size // 4096)))[:size]
    device = WildDevice(content, Weather(draw, read_errors=draw.choice([0, 0.2])), "disk")
    for first, end, zero in run(runs_of(device)):
        assert not zero or not any(content[first * K : end * K])


def test_a_device_that_cannot_tell_is_read() -> None:
    class Mute(MemoryDevice):
        async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
            raise OSError(errno.EIO, "mute")

    assert run(runs_of(Mute(3 * K))) == [(0, 3, False)]


def test_neighbours_alike_are_one_run() -> None:
    runs = run(runs_of(ToldDevice([(K, True)] * 5 + [(K, False)] * 5)))
    assert runs == [(0, 5, True), (5, 10, False)]
    assert all(before[2] != after[2] for before, after in pairwise(runs))
