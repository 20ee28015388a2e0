"""A cluster is unchanged only where all of it is said to be clean."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.nbd.dirty_bitmap import DirtyRange, NbdDirtyBitmap
from pybackup.core.qemu.changes import BitmapChanges

SECTOR = 512


class ToldBitmap(NbdDirtyBitmap):
    """Tells the ranges given, (bytes, dirty), and of each question as much as ``most`` bytes."""

    def __init__(self, ranges: Sequence[tuple[int, bool]], most: int = 1 << 40) -> None:
        self._flags = [dirty for length, dirty in ranges for _ in range(length // SECTOR)]
        self._most = most

    @property
    def size(self) -> int:
        return len(self._flags) * SECTOR

    async def ranges(self, offset: int) -> Sequence[DirtyRange]:
        found: list[DirtyRange] = []
        for at in range(offset, min(self.size, offset + self._most), SECTOR):
            dirty = self._flags[at // SECTOR]
            if found and found[-1].dirty == dirty:
                found[-1] = found[-1]._replace(end=at + SECTOR)
            else:
                found.append(DirtyRange(at, at + SECTOR, dirty))
        return found

    def is_dirty(self, cluster: int) -> bool:
        return any(self._flags[cluster * CLUSTER_SIZE // SECTOR : (cluster + 1) * CLUSTER_SIZE // SECTOR])


async def changed(bitmap: ToldBitmap) -> list[bool]:
    changes, found = BitmapChanges(bitmap), []
    while len(found) < -(-bitmap.size // CLUSTER_SIZE):
        end, one = await changes.run_at(len(found))
        assert len(found) < end <= -(-bitmap.size // CLUSTER_SIZE)
        found += [one] * (end - len(found))
    return found


LENGTHS = st.integers(1, 3 * CLUSTER_SIZE // SECTOR).map(lambda sectors: sectors * SECTOR)


@given(st.lists(st.tuples(LENGTHS, st.booleans()), min_size=1, max_size=8), st.sampled_from([512, 70_144, 1 << 40]))
def test_what_is_dirty_in_part_may_have_changed(ranges: list[tuple[int, bool]], most: int) -> None:
    bitmap = ToldBitmap(ranges, most)
    found = asyncio.run(changed(bitmap))
    wanted = [bitmap.is_dirty(cluster) for cluster in range(len(found))]
    if most >= bitmap.size:
        assert found == wanted
    assert all(one or not must for one, must in zip(found, wanted, strict=True))


@pytest.mark.parametrize("cluster", [5, 0, 3])
def test_it_can_be_asked_anywhere(cluster: int) -> None:
    bitmap = ToldBitmap([(2 * CLUSTER_SIZE, False), (2 * CLUSTER_SIZE, True), (2 * CLUSTER_SIZE, False)])
    changes = BitmapChanges(bitmap)

    async def asked() -> list[tuple[int, bool]]:
        return [await changes.run_at(one) for one in (5, cluster, 2)]

    assert asyncio.run(asked()) == [(6, False), {5: (6, False), 0: (2, False), 3: (4, True)}[cluster], (4, True)]
