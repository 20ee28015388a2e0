from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

import plain_vma
import pytest
from doubles import CheckedDevice, FaultyDevice
from virtual_time import InlineExecutor, run
from wild import Weather, WildSink

from pybackup.core.archive.create import ArchiveOptions, make_writer
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.device import CLUSTER_SIZE, BlockDevice, Buffer
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.errors import BusyError, CancelledError, SourceError
from pybackup.core.jobs.backup import BackupJob, GuestPolicy
from pybackup.core.jobs.copying import Drive

K = CLUSTER_SIZE
POOL = InlineExecutor(1)
CONTENT = Random(1).randbytes(200 * K - 7)


def calm_sink() -> WildSink:
    return WildSink(Weather(Random(1)))


def job_of(device: BlockDevice, sink: Any, **options: Any) -> BackupJob:
    archive = ArchiveOptions(uuid=bytes(16), created=0, level=None, threads=1)
    writer = make_writer([("disk", device.size)], [("conf", b"x")], archive, sink, POOL)
    clock = asyncio.get_running_loop().time
    return BackupJob([Drive(1, "disk", device)], writer, POOL, clock=clock, **options)


class Counting(MemoryDevice):
    """Counts the bytes that are being read; every read takes a second."""

    now = most = 0

    async def pread(self, offset: int, length: int) -> Buffer:
        self.now += length
        self.most = max(self.most, self.now)
        await asyncio.sleep(1)
        self.now -= length
        return super().read_now(offset, length)

    def read_now(self, offset: int, length: int) -> Any:
        return None


@pytest.mark.parametrize("size", [1, 511, 4097, 65535, 65536, 65537, 200 * K - 7])
def test_a_disk_at_rest(size: int) -> None:
    async def main() -> None:
        sink = calm_sink()
        job = job_of(CheckedDevice(MemoryDevice(CONTENT[:size])), sink)
        await job.run()
        assert plain_vma.drives_of(bytes(sink.content), {1: size}) == {1: CONTENT[:size]}
        assert job.progress.done == size and job.progress.zero == 0

    run(main())


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("reads", ["E" * 9, *("r" * good + "E" for good in range(4))])
def test_a_read_that_fails_ends_the_backup_and_leaves_nothing(reads: str, live: bool) -> None:
    async def main() -> None:
        faulty = FaultyDevice(MemoryDevice(CONTENT), reads=reads)
        device: BlockDevice = CopyBeforeWrite(faulty) if live else faulty
        sink = calm_sink()
        job = job_of(device, sink)
        with pytest.raises(SourceError, match="cannot read drive disk at byte"):
            await job.run()
        assert sink.outcome == "aborted"
        for copying in job._copying:
            # A claim that is left would make a guest wait for ever.
            assert not copying.claims.is_in_flight(0, 200)
        await device.pwrite(0, b"x" * 100 * K)

    run(main())


def test_unreadable_places_become_zeros_where_that_is_wanted() -> None:
    async def main() -> None:
        sink = calm_sink()
        device = FaultyDevice(MemoryDevice(CONTENT[: 2 * K]), reads="ErrErE" + 27 * "r" + "EEEE")
        job = job_of(device, sink, skip_unreadable=True)
        await job.run()
        assert [(one.offset, one.length) for one in job.lost] == [(8192, 4096), (16384, 4096)]
        found = plain_vma.drives_of(bytes(sink.content), {1: 2 * K})[1]
        expected = bytearray(CONTENT[: 2 * K])
        expected[8192:12288] = expected[16384:20480] = bytes(4096)
        assert found == expected

    run(main())


def test_what_is_read_ahead_is_bounded() -> None:
    async def main() -> None:
        device = Counting(CONTENT)
        await job_of(device, calm_sink()).run()
        assert device.most <= 3 * 58 * K
        live = Counting(CONTENT)
        await job_of(CopyBeforeWrite(live), calm_sink()).run()
        assert live.most <= 3 * 16 * K, "guests wait for these"

    run(main())


class StuckSink(WildSink):
    """Takes the header, and nothing else; a write ends when ``go`` is set, cancelled or not, as in a thread."""

    def __init__(self) -> None:
        super().__init__(Weather(Random(1)))
        self.go = asyncio.Event()

    async def _act(self, action: Any) -> None:
        if self.content:
            await self.go.wait()
        action()


@pytest.mark.parametrize("sizes", [(1, 1), (K, K), (3 * K, 40 * K)])
def test_when_a_backup_is_cancelled_waiting_guests_go_on_at_once(sizes: Sequence[int]) -> None:
    """Also while the cleaning up takes its time, here because a write to the archive never ends."""

    async def main() -> None:
        disk = CopyBeforeWrite(MemoryDevice(CONTENT * 3))
        sink = StuckSink()
        job = job_of(disk, sink, policy=GuestPolicy(buffer=1, timeout=None))
        task = asyncio.create_task(job.run())
        await job.frozen.wait()
        job.pause()
        guests = [asyncio.create_task(disk.pwrite(at, b"x" * K)) for at in range(200 * K, 590 * K, K)]
        guests += [asyncio.create_task(disk.discard(80 * K, size)) for size in sizes]
        job.resume()
        await asyncio.sleep(100)
        assert not all(guest.done() for guest in guests)
        job.cancel()
        await asyncio.gather(*guests)
        assert not task.done() and not disk.is_armed
        sink.go.set()
        with pytest.raises(CancelledError):
            await task
        assert sink.outcome == "aborted"
        again = calm_sink()
        now = bytes(await disk.pread(0, disk.size))
        await job_of(disk, again).run()
        assert plain_vma.drives_of(bytes(again.content), {1: disk.size})[1] == now

    run(main())


def test_guests_are_never_slowed_by_the_limit_but_the_background_is() -> None:
    async def main() -> None:
        disk = CopyBeforeWrite(MemoryDevice(CONTENT))
        sink = calm_sink()
        loop = asyncio.get_running_loop()
        job = job_of(disk, sink, speed=K)
        task = asyncio.create_task(job.run())
        await job.frozen.wait()
        for at in range(100 * K, 200 * K, 5 * K):
            await disk.pwrite(at, b"x")
        assert loop.time() < 1
        await asyncio.sleep(15)
        assert job.progress.done <= 24 * K, "20 by guests, and those came first"
        job.set_speed(0)
        await task
        assert plain_vma.drives_of(bytes(sink.content), {1: len(CONTENT)})[1] == CONTENT

    run(main())


def test_a_job_that_never_began_gives_its_sink_back() -> None:
    async def main() -> None:
        sink = calm_sink()
        job = job_of(MemoryDevice(K), sink)
        job.cancel()
        with pytest.raises(CancelledError):
            await job.run()
        assert sink.outcome == "aborted"

    run(main())


def test_one_backup_of_a_disk_at_a_time() -> None:
    async def main() -> None:
        disk = CopyBeforeWrite(MemoryDevice(CONTENT))
        first, second = calm_sink(), calm_sink()
        job = job_of(disk, first, speed=K)
        task = asyncio.create_task(job.run())
        await job.frozen.wait()
        with pytest.raises(BusyError):
            await job_of(disk, second).run()
        assert second.outcome == "aborted" and disk.is_armed
        await disk.pwrite(0, b"x" * len(CONTENT))
        job.set_speed(0)
        await task
        assert plain_vma.drives_of(bytes(first.content), {1: len(CONTENT)})[1] == CONTENT

    run(main())
