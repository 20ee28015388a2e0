from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from typing import Any

import pytest
from nbd_serving import Watched, run, until

from pybackup.core.cow.copy_before_access import CopyBeforeAccess
from pybackup.core.device import CLUSTER_SIZE

CLUSTERS = 8
SIZE = CLUSTERS * CLUSTER_SIZE + 100
OLD = bytes(range(1, 251)) * (SIZE // 250 + 1)
OLD = OLD[: 3 * CLUSTER_SIZE] + bytes(2 * CLUSTER_SIZE) + OLD[5 * CLUSTER_SIZE : SIZE]
"""Of an archive: clusters 3 and 4 are zero, the last one is short."""


class Record:
    """Remembers in memory. ``flushed`` is asked for what is durable at each call."""

    def __init__(self, log: list[Any]) -> None:
        self.log, self.wants_all, self.failure = log, False, 0

    async def add(self, runs: Any) -> None:
        if self.failure:
            raise OSError(self.failure, "no")
        self.log.append(("add", list(runs)))

    async def replace(self, absent: Any) -> None:
        self.log.append(("replace", absent.count()))

    async def remove(self) -> None:
        self.log.append("remove")

    async def close(self) -> None: ...


def opened(**options: Any) -> tuple[CopyBeforeAccess, Watched, Watched]:
    child, source = Watched(SIZE), Watched(OLD)
    return CopyBeforeAccess(child, source, is_new=True, **options), child, source


def calls(device: Watched, kind: str) -> list[Any]:
    return [call[1:] for call in device.calls if call[0] == kind]


def case(test: Any) -> Any:
    def within(*given: Any) -> None:
        run(test(*given))

    return within


@case
async def test_a_read_fetches_what_is_missing_and_only_once() -> None:
    device, child, source = opened()
    assert await device.pread(CLUSTER_SIZE + 5, 100) == OLD[CLUSTER_SIZE + 5 :][:100]
    assert calls(source, "pread") == [(CLUSTER_SIZE, CLUSTER_SIZE)]
    assert child.memory.contents()[CLUSTER_SIZE : 2 * CLUSTER_SIZE] == OLD[CLUSTER_SIZE : 2 * CLUSTER_SIZE]
    assert device.read_now(CLUSTER_SIZE + 5, 100) == OLD[CLUSTER_SIZE + 5 :][:100]
    assert device.read_now(0, 1) is None
    assert await device.pread(0, SIZE) == OLD
    assert sum(length for _, length in calls(source, "pread")) == SIZE - 2 * CLUSTER_SIZE


@case
async def test_whole_clusters_and_zeros_need_no_fetch_and_parts_do() -> None:
    device, _, source = opened()
    await device.pwrite(CLUSTER_SIZE, b"x" * CLUSTER_SIZE)
    await device.write_zeroes(2 * CLUSTER_SIZE, CLUSTER_SIZE)
    await device.pwrite(CLUSTERS * CLUSTER_SIZE, b"y" * 100)  # the last cluster is short, and whole
    await device.discard(5 * CLUSTER_SIZE, CLUSTER_SIZE)
    assert not calls(source, "pread")
    await device.pwrite(6 * CLUSTER_SIZE + 1, b"z" * (CLUSTER_SIZE + 1))
    assert sorted(calls(source, "pread")) == [(6 * CLUSTER_SIZE, CLUSTER_SIZE), (7 * CLUSTER_SIZE, CLUSTER_SIZE)]
    expected = bytearray(OLD)
    expected[CLUSTER_SIZE : 2 * CLUSTER_SIZE] = b"x" * CLUSTER_SIZE
    expected[2 * CLUSTER_SIZE : 3 * CLUSTER_SIZE] = bytes(CLUSTER_SIZE)
    expected[5 * CLUSTER_SIZE : 6 * CLUSTER_SIZE] = bytes(CLUSTER_SIZE)
    expected[6 * CLUSTER_SIZE + 1 : 7 * CLUSTER_SIZE + 2] = b"z" * (CLUSTER_SIZE + 1)
    expected[CLUSTERS * CLUSTER_SIZE :] = b"y" * 100
    assert await device.pread(0, SIZE) == expected
    assert device.is_whole


@case
async def test_zeros_of_the_archive_are_written_only_where_something_else_may_be() -> None:
    device, child, _ = opened()
    await device.pread(0, SIZE)
    assert not calls(child, "zero")
    used = Watched(b"!" * SIZE)
    device = CopyBeforeAccess(used, Watched(OLD), is_new=False)
    assert await device.pread(0, SIZE) == OLD and used.memory.contents() == OLD


@case
async def test_a_write_that_failed_in_the_midst_leaves_no_trace_where_there_were_zeros() -> None:
    device, child, _ = opened()
    child.shut()
    writing = asyncio.create_task(device.pwrite(3 * CLUSTER_SIZE, b"x" * CLUSTER_SIZE))
    await until(lambda: bool(calls(child, "pwrite")))
    child.memory.write_now(3 * CLUSTER_SIZE, b"x" * 1000)
    writing.cancel()
    await asyncio.wait([writing])
    child.gate.set()
    assert await device.pread(3 * CLUSTER_SIZE, CLUSTER_SIZE) == bytes(CLUSTER_SIZE)


@case
async def test_two_who_need_the_same_cluster_fetch_it_once() -> None:
    device, _, source = opened()
    source.shut()
    reads = [asyncio.create_task(device.pread(at, 10)) for at in (0, 100, 65000)]
    write = asyncio.create_task(device.pwrite(200, b"new"))
    await until(lambda: bool(calls(source, "pread")))
    source.gate.set()
    await asyncio.gather(*reads, write)
    assert len(calls(source, "pread")) == 1
    assert await device.pread(198, 7) == OLD[198:200] + b"new" + OLD[203:205]


@case
async def test_what_cannot_be_fetched_is_an_error_each_time_and_never_there() -> None:
    device, child, source = opened()

    async def fails(offset: int, length: int) -> bytes:
        raise OSError(errno.EIO, "damaged")

    source.pread = fails  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(OSError, match="damaged"):
            await device.pread(0, 1)
        with pytest.raises(OSError, match="damaged"):
            await device.pwrite(1, b"x")
    assert child.memory.contents() == bytes(SIZE)
    await device.pwrite(0, b"n" * CLUSTER_SIZE)
    assert await device.pread(0, 2) == b"nn"


@case
async def test_a_flush_records_what_was_there_before_it_and_only_after_the_data() -> None:
    log: list[Any] = []
    device, child, _ = opened(record=Record(log))
    flushed = child.flush

    async def flush() -> None:
        await flushed()
        await device.pwrite(5 * CLUSTER_SIZE, b"x" * CLUSTER_SIZE)
        log.append("flushed")

    child.flush = flush  # type: ignore[method-assign]
    await device.pwrite(0, b"x" * 2 * CLUSTER_SIZE)
    await device.flush()
    assert log == ["flushed", ("add", [(0, 2)])]
    await device.flush()
    assert log[2:] == ["flushed", ("add", [(5, 1)])]


@case
async def test_flushes_that_come_together_are_one() -> None:
    log: list[Any] = []
    device, child, _ = opened(record=Record(log))
    await device.pwrite(0, b"x" * CLUSTER_SIZE)
    child.shut()
    first = asyncio.create_task(device.flush())
    await until(lambda: len(calls(child, "flush")) == 1)
    others = [asyncio.create_task(device.flush()) for _ in range(10)]
    await asyncio.sleep(0)
    child.gate.set()
    await asyncio.gather(first, *others)
    assert len(calls(child, "flush")) == 2


@case
async def test_after_a_flush_that_failed_none_succeeds() -> None:
    log: list[Any] = []
    device, child, _ = opened(record=Record(log))
    works = child.flush

    async def fails() -> None:
        raise OSError(errno.EIO, "lost")

    child.flush = fails  # type: ignore[method-assign]
    await device.pwrite(0, b"x" * CLUSTER_SIZE)
    with pytest.raises(OSError, match="lost"):
        await device.flush()
    child.flush = works  # type: ignore[method-assign]
    with pytest.raises(OSError, match="earlier flush failed: lost"):
        await device.flush()
    assert not log and device.failure is not None


@case
async def test_a_map_for_which_there_is_no_room_is_written_when_there_is() -> None:
    log: list[Any] = []
    record = Record(log)
    device, _, _ = opened(record=record)
    await device.pwrite(0, b"x" * CLUSTER_SIZE)
    record.failure = errno.ENOSPC
    with pytest.raises(OSError):
        await device.flush()
    record.failure = 0
    await device.flush()
    assert log == [("add", [(0, 1)])]
    record.failure = errno.EIO
    await device.pwrite(CLUSTER_SIZE, b"x" * CLUSTER_SIZE)
    with pytest.raises(OSError):
        await device.flush()
    record.failure = 0
    with pytest.raises(OSError, match="earlier"):
        await device.flush()


@case
async def test_the_record_goes_when_all_is_there_and_never_comes_back() -> None:
    log: list[Any] = []
    device, child, _ = opened(record=Record(log))
    await device.pread(0, SIZE)
    await device.finish()
    assert log[-1] == "remove" and len(log) == 2
    await device.pwrite(0, b"x")
    await device.flush()
    assert len(log) == 2 and len(calls(child, "flush")) == 2


@case
async def test_a_long_record_is_told_everything_but_what_is_under_way() -> None:
    log: list[Any] = []
    record = Record(log)
    device, _, source = opened(record=record)
    await device.pwrite(0, b"x" * CLUSTER_SIZE)
    source.shut()
    reading = asyncio.create_task(device.pread(CLUSTER_SIZE, 1))
    await until(lambda: bool(calls(source, "pread")))
    record.wants_all = True
    await device.flush()
    assert log == [("replace", CLUSTERS)]  # of CLUSTERS + 1
    source.gate.set()
    await reading


@case
async def test_an_overlay_keeps_what_is_written_and_nothing_that_is_read() -> None:
    device, child, _ = opened(keeps_reads=False)
    assert await device.pread(0, SIZE) == OLD
    await device.pwrite(10, b"new")
    expected = OLD[:10] + b"new" + OLD[13:]
    assert await device.pread(0, SIZE) == expected
    assert child.memory.contents() == expected[:CLUSTER_SIZE] + bytes(SIZE - CLUSTER_SIZE)


@case
async def test_the_status_is_that_of_the_disk_where_something_is_there_and_else_of_the_archive() -> None:
    device, _, _ = opened()
    await device.write_zeroes(0, CLUSTER_SIZE)
    await device.pwrite(3 * CLUSTER_SIZE, b"x" * CLUSTER_SIZE)
    found: list[tuple[int, int, bool]] = []
    at = 0
    while at < SIZE:
        some = await device.extents(at, SIZE - at)
        assert some[0].offset == at
        found += [(one.offset, one.length, one.zero) for one in some]
        at = some[-1].end
    zero = bytearray(SIZE)
    for offset, length, is_zero in found:
        zero[offset : offset + length] = (b"\1" if is_zero else b"\0") * length
    wanted = [1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert [zero[number * CLUSTER_SIZE] for number in range(CLUSTERS + 1)] == wanted


@case
async def test_who_fills_waits_while_a_guest_does() -> None:
    device, _, source = opened()
    await device.nobody_waits()
    source.shut()
    reading = asyncio.create_task(device.pread(0, 1))
    await until(lambda: bool(calls(source, "pread")))
    waiting = asyncio.create_task(device.nobody_waits())
    await asyncio.sleep(0)
    assert not waiting.done()
    source.gate.set()
    await asyncio.gather(reading, waiting)


def test_a_trim_for_which_zeros_would_be_written_leaves_the_archives_content() -> None:
    async def test() -> None:
        device, child, _ = opened()

        async def slow(offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
            assert fast_only
            raise OSError(errno.EOPNOTSUPP, "slow")

        child.write_zeroes = slow  # type: ignore[method-assign]
        await device.discard(0, CLUSTER_SIZE)
        assert await device.pread(0, 10) == OLD[:10]

    checked: Coroutine[Any, Any, None] = test()
    run(checked)


@case
async def test_a_full_disk_keeps_nobody_from_reading() -> None:
    device, child, source = opened()

    async def full(offset: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    child.pwrite = full  # type: ignore[method-assign]
    child.inline = False
    assert await device.pread(0, SIZE) == OLD
    with pytest.raises(OSError, match="full"):
        await device.pwrite(1, b"x")
    assert child.memory.contents() == bytes(SIZE)
    assert len(calls(source, "pread")) > 2
