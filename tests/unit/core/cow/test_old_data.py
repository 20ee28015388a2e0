from __future__ import annotations

import asyncio
from random import Random

from virtual_time import run
from wild import Weather, WildFleece

from pybackup.core.cow.old_data import OldData, Saved


def slow() -> Weather:
    """Everything takes a while, so that everybody else has their turn meanwhile."""
    return Weather(Random(1), slow=1.0)


def put_now(old_data: OldData, drive_id: int, first: int, content: bytes) -> bool:
    """As a guest does that finds the old data in the page cache."""
    if not old_data.reserve_now(len(content)):
        return False
    old_data.put(drive_id, first, content)
    return True


async def put(old_data: OldData, drive_id: int, first: int, content: bytes) -> None:
    """As a guest does that may wait for room."""
    await old_data.reserve(len(content))
    old_data.put(drive_id, first, content)


async def take_all(old_data: OldData) -> list[Saved]:
    taken: list[Saved] = []
    while not old_data.is_empty:
        batch = await old_data.take()
        taken += batch
        old_data.release(batch)
        await asyncio.sleep(0)
    return taken


def test_what_was_put_comes_out_in_order() -> None:
    async def main() -> None:
        old_data = OldData(100)
        await put(old_data, 1, 5, b"a" * 40)
        assert put_now(old_data, 2, 6, b"b" * 60)
        assert not old_data.has_room(1)
        assert not put_now(old_data, 1, 7, b"c")
        assert [(one.drive_id, one.first) for one in await take_all(old_data)] == [(1, 5), (2, 6)]
        assert old_data.in_memory == 0

    run(main())


def test_one_entry_always_fits() -> None:
    async def main() -> None:
        old_data = OldData(1)
        await put(old_data, 1, 0, bytes(1000))
        assert not old_data.has_room(1)

    run(main())


def test_room_is_given_in_turn_so_that_large_entries_do_not_starve() -> None:
    async def main() -> None:
        old_data = OldData(100)
        await put(old_data, 1, 0, bytes(60))
        await put(old_data, 1, 1, bytes(40))
        large = asyncio.create_task(put(old_data, 1, 2, bytes(90)))
        await asyncio.sleep(0)
        small = asyncio.create_task(put(old_data, 1, 3, bytes(10)))
        await asyncio.sleep(0)
        batch = await old_data.take()
        old_data.release(batch[:1])
        assert not put_now(old_data, 1, 4, bytes(1)), "somebody else was first"
        await asyncio.sleep(1)
        assert not large.done() and not small.done()
        old_data.release(batch[1:])
        await asyncio.gather(large, small)
        assert old_data.in_memory == 100

    run(main())


def test_a_put_that_is_cancelled_took_nothing() -> None:
    async def main() -> None:
        old_data = OldData(100)
        await put(old_data, 1, 0, bytes(100))
        waits, given = (asyncio.create_task(put(old_data, 1, number, bytes(80))) for number in (1, 2))
        behind = asyncio.create_task(put(old_data, 1, 3, bytes(100)))
        await asyncio.sleep(0)
        waits.cancel()
        batch = await old_data.take()
        old_data.release(batch)
        given.cancel()  # it has its room already, but has not woken
        await asyncio.wait([waits, given])
        assert waits.cancelled() and given.cancelled()
        await behind
        assert [one.first for one in await take_all(old_data)] == [3]
        assert old_data.in_memory == 0

    run(main())


def test_closing_lets_everybody_go() -> None:
    async def main() -> None:
        old_data = OldData(10, WildFleece(0, slow()))
        await put(old_data, 1, 0, bytes(10))
        waiting = [
            asyncio.create_task(one)
            for one in (
                put(old_data, 1, 1, bytes(10)),
                old_data.wait_until_empty(),
                old_data.wait_until_low(),
                old_data.move_to_file(),
            )
        ]
        await asyncio.sleep(1)
        assert not any(one.done() for one in waiting)
        old_data.close()
        await asyncio.gather(*waiting)
        assert await old_data.take() == []
        assert put_now(old_data, 1, 2, bytes(10**6)), "it is dropped"
        await put(old_data, 1, 3, bytes(10**6))

    run(main())


def test_the_file_takes_what_the_memory_cannot() -> None:
    async def main() -> None:
        old_data = OldData(100, WildFleece(1000, slow()))
        mover = asyncio.create_task(old_data.move_to_file())
        for number in range(20):
            await put(old_data, 1, number, bytes([number]) * 40)
        await asyncio.sleep(1000)
        assert old_data.in_memory <= 50
        taken = await take_all(old_data)
        assert sorted((one.first, bytes(one.content)) for one in taken) == [(n, bytes([n]) * 40) for n in range(20)]
        mover.cancel()
        await asyncio.wait([mover])

    run(main())


def test_an_archive_that_waits_learns_of_what_was_moved() -> None:
    """The mover takes all there is before the archive looks; whether the file has room or not, it must look again."""

    async def main(room: int) -> None:
        old_data = OldData(10, WildFleece(room, slow()))
        mover = asyncio.create_task(old_data.move_to_file())
        await asyncio.sleep(0)
        taking = asyncio.create_task(take_one(old_data))
        await asyncio.sleep(0)
        await put(old_data, 1, 0, bytes(10))
        await taking
        assert old_data.is_empty
        mover.cancel()
        await asyncio.wait([mover])

    async def take_one(old_data: OldData) -> None:
        old_data.release(await old_data.take())

    run(main(100))
    run(main(0))


def test_what_is_reserved_takes_room_before_it_is_there() -> None:
    async def main() -> None:
        old_data = OldData(100)
        assert old_data.reserve_now(60) and old_data.in_memory == 60
        assert not old_data.reserve_now(60), "nobody reads what would have no place"
        waits = asyncio.create_task(old_data.reserve(60))
        await asyncio.sleep(1)
        assert not waits.done() and old_data.is_empty
        old_data.give_up(60)
        await waits
        old_data.put(1, 0, bytes(60))
        assert old_data.in_memory == 60 and not old_data.is_empty
        old_data.close()
        old_data.give_up(1000)
        assert old_data.reserve_now(10**9), "a closed queue drops everything"

    run(main())
