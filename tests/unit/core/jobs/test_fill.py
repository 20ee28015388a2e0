from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from typing import Any

import pytest
from nbd_serving import Watched, until
from virtual_time import run

from pybackup.core.cow.copy_before_access import CopyBeforeAccess
from pybackup.core.device import CLUSTER_SIZE, BlockStatus
from pybackup.core.errors import ArchiveError, TargetError
from pybackup.core.jobs.fill import CLUSTERS_AT_ONCE, FETCHES, LAST_RETRY, FillJob

CLUSTERS = 100
HOLES = range(10, 40)
CONTENT = b"".join(
    bytes(CLUSTER_SIZE) if number in HOLES else bytes([number + 1]) * CLUSTER_SIZE for number in range(CLUSTERS)
)


class Archive(Watched):
    """Some clusters are damaged, and all are while the store is lost."""

    def __init__(self) -> None:
        super().__init__(CONTENT)
        self.damaged: set[int] = set()
        self.is_lost = False

    async def pread(self, offset: int, length: int) -> Any:
        found = await super().pread(offset, length)
        touched = range(offset // CLUSTER_SIZE, -(-(offset + length) // CLUSTER_SIZE))
        if self.is_lost or not self.damaged.isdisjoint(touched):
            reason = ArchiveError("no store" if self.is_lost else f"damaged: {sorted(self.damaged)}")
            reason.__cause__ = OSError("timeout") if self.is_lost else None
            raise OSError(errno.EIO, str(reason)) from reason
        return found

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        return list(await super().extents(offset, length))[:2]


class Filling:
    """A job, its disk, and what it told."""

    def __init__(self, **options: Any) -> None:
        self.child, self.source = Watched(CLUSTERS * CLUSTER_SIZE), Archive()
        self.device = CopyBeforeAccess(self.child, self.source, is_new=False)
        self.told: list[str] = []
        clock = asyncio.get_running_loop().time
        self.job = FillJob({"disk": self.device}, clock=clock, tell=self.told.append, **options)

    def reads(self) -> list[tuple[int, int]]:
        return [(call[1] // CLUSTER_SIZE, call[2] // CLUSTER_SIZE) for call in self.source.calls if call[0] == "pread"]


def case(test: Any) -> Any:
    return lambda: run(test())


@case
async def test_data_comes_first_and_holes_last_and_then_all_is_there() -> None:
    filling = Filling()
    await filling.job.run()
    assert filling.child.memory.contents() == CONTENT and filling.device.is_whole
    kinds = [call[0] for call in filling.child.calls if call[0] in ("pwrite", "zero")]
    assert "zero" in kinds and "pwrite" not in kinds[kinds.index("zero") :]
    assert all(count <= CLUSTERS_AT_ONCE for _, count in filling.reads())
    assert filling.job.progress.done == len(CONTENT)


@case
async def test_no_fetch_begins_while_a_guest_waits_for_one() -> None:
    filling = Filling()
    filling.source.shut()
    guest = asyncio.create_task(filling.device.pread(90 * CLUSTER_SIZE, 1))
    await until(lambda: len(filling.reads()) == 1)
    task = asyncio.create_task(filling.job.run())
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(filling.reads()) == 1
    filling.source.gate.set()
    await guest
    await task


@case
async def test_few_fetches_are_under_way_and_none_while_paused() -> None:
    filling = Filling()
    filling.source.shut()
    task = asyncio.create_task(filling.job.run())
    await until(lambda: len(filling.reads()) == FETCHES)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(filling.reads()) == FETCHES
    filling.job.pause()
    filling.source.gate.set()
    await asyncio.sleep(100)
    paused = len(filling.reads())
    assert paused <= FETCHES + 1 and not task.done()
    filling.job.resume()
    await task


@case
async def test_the_speed_holds_and_guests_are_charged_to_it_and_not_held() -> None:
    filling = Filling(speed=1 << 20)
    begun = asyncio.get_running_loop().time()
    task = asyncio.create_task(filling.job.run())
    await asyncio.sleep(0.01)
    await filling.device.pread(80 * CLUSTER_SIZE, 10 * CLUSTER_SIZE)
    assert asyncio.get_running_loop().time() - begun < 0.2
    await task
    data = (CLUSTERS - len(HOLES)) * CLUSTER_SIZE / (1 << 20)
    assert data - 2 < asyncio.get_running_loop().time() - begun < data + 1


@case
async def test_only_what_is_damaged_is_left_out_until_a_guest_has_written_it() -> None:
    filling = Filling()
    filling.source.damaged = {5, 60}
    task = asyncio.create_task(filling.job.run())
    await asyncio.sleep(5)
    left = [cluster for cluster in range(CLUSTERS) if filling.device.claims.is_dirty(cluster, cluster + 1)]
    assert left == [5, 60] and not task.done()
    assert filling.told == ["damaged: [5, 60]; what cannot be fetched is tried again"]
    before = len(filling.reads())
    await asyncio.sleep(10 * LAST_RETRY)
    assert 2 <= len(filling.reads()) - before < 60
    for cluster in (5, 60):
        await filling.device.pwrite(cluster * CLUSTER_SIZE, b"n" * CLUSTER_SIZE)
    await task
    assert filling.device.is_whole


@case
async def test_a_store_that_is_lost_is_asked_seldom_and_found_again() -> None:
    filling = Filling()
    filling.source.is_lost = True
    task = asyncio.create_task(filling.job.run())
    await asyncio.sleep(1000)
    assert filling.job.problem == "no store" and len(filling.told) == 1 and not task.done()
    # Each piece once in a pass, and not cluster by cluster.
    assert all(count > 1 for _, count in filling.reads())
    filling.source.is_lost = False
    await task


@case
async def test_a_disk_that_loses_writes_ends_the_job_and_the_guest_goes_on() -> None:
    filling = Filling()

    async def fails() -> None:
        raise OSError(errno.EIO, "lost")

    filling.child.flush = fails  # type: ignore[method-assign]
    with pytest.raises(TargetError, match="lost what was written"):
        await filling.job.run()
    assert await filling.device.pread(0, 10) == CONTENT[:10]
