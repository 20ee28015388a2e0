"""The model of a disk in use: guests work on it, backups come and go, and everything is compared with plain bytes.

One seed decides everything, scheduling included. What must hold:
- every read of a guest gives what was written before, whatever the backup does;
- an archive that was finished holds every disk as it was at the one instant of the freeze;
- a backup that was not finished says why, leaves no archive, and the next one works;
- no guest's request fails that the policy does not allow to fail, and none waits for ever;
- afterwards no filter is armed, and no cluster is claimed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

import plain_vma
from virtual_time import InlineExecutor, run
from wild import Weather, WildDevice, WildFleece, WildIntake, WildSink

from pybackup.core.archive.create import ArchiveOptions, make_writer
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.cow.guest_copies import OnError
from pybackup.core.cow.old_data import OldData
from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.errors import CancelledError, PybackupError, SourceError, TargetError
from pybackup.core.jobs.backup import BackupJob, GuestPolicy
from pybackup.core.jobs.copying import Drive
from pybackup.core.trace import Trace

ODD_SIZES = [1, 511, 4097, 65535, 65536, 65537, 8 * 65536 + 4096, 19 * 65536 - 3, 70 * 65536 + 513]
LONGEST = 500.0
"""Seconds of virtual time after which a backup is stuck; the longest of 1,200 took 50."""
POOL = InlineExecutor(1)


def play(seed: int, backups: int = 4) -> dict[str, int]:
    """Play one game to its end; how often which outcome came up."""
    return run(Game(Random(seed)).play(backups))


class Disk:
    """A disk and what must be on it. ``busy``: the byte ranges that guests are at: two at once have no order."""

    def __init__(self, random: Random, weather: Weather, number: int) -> None:
        size = random.choice(ODD_SIZES)
        content = b"".join(
            bytes(min(4096, size - at)) if random.random() < 0.4 else random.randbytes(min(4096, size - at))
            for at in range(0, size, 4096)
        )
        self.number, self.size = number, size
        self.wild = WildDevice(content, weather, f"disk{number}")
        self.filter = CopyBeforeWrite(self.wild)
        self.model = bytearray(content)
        self.busy: list[tuple[int, int]] = []

    def is_free(self, start: int, end: int) -> bool:
        return all(end <= low or high <= start for low, high in self.busy)


class Game:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.weather = Weather(random)
        self.disks = [Disk(random, self.weather, number) for number in range(1, random.randint(1, 3) + 1)]
        self.policy = GuestPolicy()
        self.think = random.choice([[0, 0, 0.001, 0.01, 0.2, 3.0], [0, 0.01, 0.1]])  # seconds between requests
        self.over = False
        self.outcomes: dict[str, int] = {}

    async def play(self, backups: int) -> dict[str, int]:
        guests = [asyncio.create_task(self._guest()) for _ in range(self.random.randint(1, 5))]
        try:
            for number in range(backups):
                self._change_weather(fine=number == backups - 1)
                await self._watch(guests, self._backup(tame=number == backups - 1))
        finally:
            self.over = True
        # None of them waits for ever: a deadlock ends the event loop.
        await asyncio.gather(*guests)
        for disk in self.disks:
            assert disk.wild.disk.contents() == disk.model
        return self.outcomes

    @staticmethod
    async def _watch(guests: list[asyncio.Task[None]], backup: Any) -> None:
        """Do a backup, unless a guest finds something wrong first."""
        task = asyncio.create_task(asyncio.wait_for(backup, LONGEST))
        done, _ = await asyncio.wait([task, *guests], return_when=asyncio.FIRST_COMPLETED)
        if task not in done:
            task.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await task
        for one in done:
            one.result()

    def _change_weather(self, *, fine: bool) -> None:
        draw = self.random.choice
        weather = self.weather
        weather.slow = draw([0.0, 0.01, 0.1, 0.5])
        weather.read_errors = 0.0 if fine else draw([0, 0, 0, 0.01, 0.1])
        weather.write_errors = 0.0 if fine else draw([0, 0, 0.1])
        weather.sink_errors = 0.0 if fine else draw([0, 0, 0, 0.01, 0.1])
        weather.fleece_errors = 0.0 if fine else draw([0, 0, 0, 0.05])

    # -- guests --

    async def _guest(self) -> None:
        while not self.over:
            await self.weather.wait()
            disk = self.random.choice(self.disks)
            start, end = self._range(disk)
            if disk.is_free(start, end):
                disk.busy.append((start, end))
                await self._request(disk, start, end)
                disk.busy.remove((start, end))
            await asyncio.sleep(self.random.choice(self.think))

    def _data(self, length: int) -> bytes:
        pattern = self.random.randbytes(31)
        return (pattern * (length // 31 + 1))[:length]

    def _range(self, disk: Disk) -> tuple[int, int]:
        start = self.random.randrange(disk.size)
        if self.random.random() < 0.3:
            start -= start % CLUSTER_SIZE
        most = self.random.choice([1, 4096, CLUSTER_SIZE, 3 * CLUSTER_SIZE, disk.size])
        return start, min(disk.size, start + self.random.randint(1, most))

    async def _request(self, disk: Disk, start: int, end: int) -> None:
        task = asyncio.create_task(self._try(disk, start, end))
        if self.random.random() < 0.05:
            await self.weather.wait()
            task.cancel()  # the client has vanished
        faults = self.weather.faults
        try:
            await task
        except asyncio.CancelledError:
            pass
        except OSError as error:
            # A request that fails has a reason, and has changed nothing.
            waited = self.policy.on_error is OnError.BREAK_GUEST and self.policy.timeout is not None
            assert self.weather.faults > faults or self.weather.faults or waited, error
            assert disk.wild.disk.read_now(start, end - start) == disk.model[start:end]

    async def _try(self, disk: Disk, start: int, end: int) -> None:
        try:
            await self._do(disk, start, end)
        except asyncio.CancelledError:
            # Nobody knows how far it got; but it has ended.
            disk.model[start:end] = disk.wild.disk.read_now(start, end - start)
            raise

    async def _do(self, disk: Disk, start: int, end: int) -> None:
        match self.random.choice(["write", "write", "now", "zero", "discard", "flush", "read", "read_now"]):
            case "write":
                data = self._data(end - start)
                await disk.filter.pwrite(start, data)
                disk.model[start:end] = data
            case "now":
                data = self._data(end - start)
                if not disk.filter.write_now(start, data):
                    await disk.filter.pwrite(start, data)
                disk.model[start:end] = data
            case "zero":
                await disk.filter.write_zeroes(start, end - start)
                disk.model[start:end] = bytes(end - start)
            case "discard":
                await disk.filter.discard(start, end - start)
                disk.model[start:end] = bytes(end - start)
            case "flush":
                await disk.filter.flush()
            case "read":
                self._take_read(disk, start, await disk.filter.pread(start, end - start), end)
            case "read_now":
                found = disk.filter.read_now(start, end - start)
                if found is not None:
                    self._take_read(disk, start, found, end)

    @staticmethod
    def _take_read(disk: Disk, start: int, found: Any, end: int) -> None:
        assert bytes(found) == disk.model[start:end]
        if isinstance(found, bytearray):
            found[:] = b"!" * len(found)  # it belongs to the caller

    # -- backups --

    async def _backup(self, *, tame: bool) -> None:
        frozen: dict[int, bytes] = {}

        def freeze(event: str, values: dict[str, object]) -> None:
            frozen.update({disk.number: bytes(disk.model) for disk in self.disks})
            for disk in self.disks:
                assert disk.wild.disk.contents() == disk.model, "a change was in flight at the freeze"

        faults = self.weather.faults
        sink = WildSink(self.weather)
        job = self._make_job(sink, Trace(["job.freeze"], freeze))
        torment = asyncio.create_task(self._torment(job, may_cancel=not tame))
        try:
            await job.run()
        except PybackupError as error:
            self._check_failure(job, error, sink, had_faults=self.weather.faults > faults, tame=tame)
        else:
            assert sink.outcome == "committed" and job.error is None
            sizes = {disk.number: disk.size for disk in self.disks}
            found = plain_vma.drives_of(bytes(sink.content), sizes)
            assert found == frozen
            assert job.progress.done == job.progress.size
            self.count("done")
        torment.cancel()
        await asyncio.wait([torment])
        if not torment.cancelled():
            torment.result()
        await self._check_nothing_is_left(job)

    def _make_job(self, sink: WildSink, trace: Trace) -> BackupJob:
        draw = self.random.choice
        self.policy = GuestPolicy(
            on_error=draw(list(OnError)),
            buffer=draw([1, 65536, 300_000, 2 << 20, 64 << 20]),
            timeout=draw([None, None, 0.5, 30.0]),
            copy_on_read=draw([False, True]),
        )
        fleece = draw([None, WildFleece(draw([65536, 1 << 20, 1 << 30]), self.weather)])
        names = [(disk.wild.name, disk.size) for disk in self.disks]
        options = ArchiveOptions(uuid=bytes(16), created=0, level=None, threads=1)
        return BackupJob(
            [Drive(disk.number, disk.wild.name, disk.filter) for disk in self.disks],
            WildIntake(make_writer(names, [("conf", b"x")], options, sink, POOL), self.weather),
            POOL,
            policy=self.policy,
            old_data=OldData(self.policy.buffer, fleece),
            speed=draw([0, 0, 500_000, 10_000_000]),
            clock=asyncio.get_running_loop().time,
            trace=trace,
        )

    async def _torment(self, job: BackupJob, *, may_cancel: bool) -> None:
        for _ in range(self.random.randint(0, 12)):
            await self.weather.wait()
            await asyncio.sleep(self.random.choice([0, 0, 0.001, 1.0]))
            match self.random.choice(["pause", "resume", "speed", "cancel" if may_cancel else "resume"]):
                case "pause":
                    job.pause()
                case "resume":
                    job.resume()
                case "speed":
                    job.set_speed(self.random.choice([0, 1_000_000, 20_000_000]))
                case "cancel" if self.random.random() < 0.3:
                    if self.random.random() < 0.3:
                        job.set_speed(0)  # in the same turn of the loop
                    job.cancel()
                    assert not any(disk.filter.is_armed for disk in self.disks), "guests go on at once"
        job.resume()

    def _check_failure(
        self, job: BackupJob, error: PybackupError, sink: WildSink, *, had_faults: bool, tame: bool
    ) -> None:
        assert job.error is error
        assert sink.outcome == "aborted"
        if isinstance(error, CancelledError):
            assert not tame
            self.count("cancelled")
        elif "too slow" in str(error):
            assert self.policy.on_error is OnError.BREAK_BACKUP and self.policy.timeout is not None
            self.count("too slow")
        else:
            assert isinstance(error, SourceError | TargetError) and had_faults, error
            self.count("failed")

    async def _check_nothing_is_left(self, job: BackupJob) -> None:
        assert not any(disk.filter.is_armed for disk in self.disks)
        for copying in job._copying:
            # A guest may still be reading old data that nobody wants any more.
            await copying.claims.wait_until_settled()

    def count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
