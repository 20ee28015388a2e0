from __future__ import annotations

import asyncio

from virtual_time import run

from pybackup.core.inflight import InflightRanges


def test_who_waits_for_a_range_goes_on_when_nothing_overlaps_it() -> None:
    async def main() -> None:
        ranges = InflightRanges()
        low, high = ranges.begin(0, 10), ranges.begin(15, 30)
        waiter = asyncio.create_task(ranges.wait_until_free(5, 20))
        await asyncio.sleep(1)
        ranges.finish(low)
        await asyncio.sleep(1)
        assert not waiter.done()
        ranges.finish(high)
        await waiter
        assert not ranges

    run(main())


def test_neighbours_do_not_overlap() -> None:
    async def main() -> None:
        ranges = InflightRanges()
        ranges.begin(10, 20)
        await ranges.wait_until_free(0, 10)
        await ranges.wait_until_free(20, 30)
        assert ranges.first_overlap(19, 20) is not None

    run(main())


def test_a_range_that_begins_while_one_waits_is_waited_for_too() -> None:
    async def main() -> None:
        ranges = InflightRanges()
        first = ranges.begin(0, 10)
        waiter = asyncio.create_task(ranges.wait_until_empty())
        await asyncio.sleep(0)
        ranges.finish(first)
        second = ranges.begin(5, 6)
        await asyncio.sleep(1)
        assert not waiter.done()
        ranges.finish(second)
        await waiter

    run(main())


def test_a_waiter_that_is_cancelled_harms_nobody() -> None:
    async def main() -> None:
        ranges = InflightRanges()
        only = ranges.begin(0, 10)
        gone, stays = (asyncio.create_task(ranges.wait_until_empty()) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        ranges.finish(only)
        await stays
        await asyncio.wait([gone])
        assert gone.cancelled()

    run(main())
