"""The model of a live restore: guests work on a disk while it fills, and everything is cut off at random instants.

One seed decides everything, scheduling included. What must hold:
- every read of a guest gives the archive's content and what was written since, or EIO where it cannot be fetched;
- after a power failure or a kill, each byte is as it was at the last flush that was acknowledged, or newer;
- what the archive cannot give is never there, and all else is in the end: the disk equals the archive plus the writes;
- then the map is gone, and what is on the disk is durable.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from archives import encode, open_index
from virtual_time import InlineExecutor, run
from wild import Weather, WildDevice, to_its_end

from pybackup.core.archive.drive import ArchiveDrive
from pybackup.core.archive.view import ArchiveView
from pybackup.core.cow.copy_before_access import CopyBeforeAccess
from pybackup.core.cow.presence_file import PresenceFile
from pybackup.core.device import CLUSTER_SIZE, BlockStatus, Buffer
from pybackup.core.devices.read_only import ReadOnlyDevice
from pybackup.core.errors import ArchiveError, PybackupError, TargetError
from pybackup.core.jobs.fill import FillJob
from pybackup.formats.restoring_map import Presence, RestoringHeader, encode_record

ODD_SIZES = [1, 513, 65536, 65537, 9 * 65536 + 4096, 20 * 65536 - 3, 40 * 65536 + 513]
SECTOR = 512
LONGEST = 3000.0
"""Seconds of virtual time after which a session is stuck."""
POOL = InlineExecutor(1)


def play(seed: int, folder: Path, sessions: int = 4) -> Counter[str]:
    """Play one game to its end; how often which outcome came up."""
    random = Random(seed)
    game = _Game(random, folder)
    run(game.play(random.randint(1, sessions)))
    return game.outcomes


class PowerDisk(WildDevice):
    """A disk with a cache: what was not flushed may be lost, sector by sector.

    ``durable``: what survives for certain. A flush that fails has lost what it should have written, and the next one
    knows nothing of it, as in Linux.
    """

    def __init__(self, data: bytes, weather: Weather) -> None:
        super().__init__(data, weather, "disk")
        self.durable = bytearray(data)
        self.flush_errors = 0.0
        self._dirty: set[int] = set()
        self._unsure: set[int] = set()
        self._punches = weather.random.random() < 0.7

    def _touch(self, offset: int, length: int) -> None:
        self._dirty.update(range(offset // SECTOR, -(-(offset + length) // SECTOR)))

    async def _write(self, offset: int, data: bytes) -> None:
        self._touch(offset, len(data))
        try:
            if self.weather.strikes(self.weather.write_errors):
                self.disk.write_now(offset, data[: self.weather.random.randint(0, len(data))])
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
            await super()._write(offset, data)
        finally:
            # A flush may have come between the halves.
            self._touch(offset, len(data))

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        if fast_only and not self._punches:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), self.name)
        await super().write_zeroes(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        self._touch(offset, len(data))
        return super().write_now(offset, data)

    async def flush(self) -> None:
        await to_its_end(self._flush())

    async def _flush(self) -> None:
        taken, self._dirty = self._dirty, set()
        self._unsure |= taken
        cached = self.disk.contents()
        content = {one: self._sector(cached, one) for one in taken}
        await self.weather.wait()
        if self.weather.strikes(self.flush_errors):
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        for one, sector in content.items():
            self.durable[one * SECTOR : one * SECTOR + len(sector)] = sector
        self._unsure -= taken - self._dirty

    @staticmethod
    def _sector(content: bytes, number: int) -> bytes:
        return content[number * SECTOR : (number + 1) * SECTOR]

    def after_kill(self) -> bytes:
        """What is on it when the program is gone: its cache is the kernel's."""
        return self.disk.contents()

    def after_power_failure(self) -> bytes:
        """What is on it when the machine was gone: of what was not flushed, anything."""
        found, cached = bytearray(self.durable), self.disk.contents()
        for one in self._dirty | self._unsure:
            if self.weather.random.random() < 0.5:
                sector = self._sector(cached, one)
                found[one * SECTOR : one * SECTOR + len(sector)] = sector
        return bytes(found)


class ShakyArchive(ReadOnlyDevice):
    """A drive of a real archive; some of its clusters are damaged, and now and then the store does not answer."""

    def __init__(self, drive: ArchiveDrive, weather: Weather) -> None:
        self._drive, self._weather = drive, weather
        self.size, self.name = drive.size, drive.name
        self.damaged: set[int] = set()
        self.is_lost = False

    def fails(self, start: int, end: int) -> bool:
        clusters = range(start // CLUSTER_SIZE, -(-end // CLUSTER_SIZE))
        return self.is_lost or not self.damaged.isdisjoint(clusters)

    async def pread(self, offset: int, length: int) -> Buffer:
        await self._weather.wait()
        if self.is_lost:
            await asyncio.sleep(20)
        if self.fails(offset, offset + length):
            damage = ArchiveError("test.vma is damaged")
            damage.__cause__ = OSError("no store") if self.is_lost else None
            raise OSError(errno.EIO, str(damage), self.name) from damage
        return await self._drive.pread(offset, length)

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        await self._weather.wait()
        found = await self._drive.extents(offset, length)
        return found[: self._weather.random.randint(1, len(found))]

    async def close(self) -> None:
        await self._drive.close()


class _Model:
    """What must be on the disk. ``base``: as of the last flush that was acknowledged; ``since``: all written later."""

    def __init__(self, content: bytes) -> None:
        self.now = bytearray(content)
        self.base = bytes(content)
        self.since: list[tuple[int, int, bytes]] = []
        self.under_way: dict[int, tuple[int, bytes]] = {}
        self._step = self._flushed = 0

    def step(self) -> int:
        self._step += 1
        return self._step

    def written(self, offset: int, data: bytes) -> None:
        self.now[offset : offset + len(data)] = data
        self.since.append((self.step(), offset, data))

    def flush_begins(self) -> tuple[int, bytes]:
        return self.step(), bytes(self.now)

    def flushed(self, begun: tuple[int, bytes]) -> None:
        step, content = begun
        if step > self._flushed:
            self._flushed, self.base = step, content
            self.since = [one for one in self.since if one[0] > step]

    def cut_off(self, found: bytes) -> None:
        """The disk is found like this after all was lost: may that be?"""
        later = [(offset, data) for _, offset, data in self.since] + list(self.under_way.values())
        for at in range(0, len(found), SECTOR):
            end = min(len(found), at + SECTOR)
            if found[at:end] != self.base[at:end]:
                self._check_newer(found, at, end, later)
        self.now, self.base, self.since = bytearray(found), bytes(found), []
        self.under_way.clear()

    def _check_newer(self, found: bytes, at: int, end: int, later: list[tuple[int, bytes]]) -> None:
        for place in range(at, end):
            allowed = [data[place - offset] for offset, data in later if offset <= place < offset + len(data)]
            assert found[place] in (self.base[place], *allowed), f"byte {place} lost what was flushed"


class _Game:
    def __init__(self, random: Random, folder: Path) -> None:
        self.random, self.folder = random, folder
        self.weather = Weather(random)
        size = random.choice(ODD_SIZES)
        self.truth = b"".join(
            bytes(min(CLUSTER_SIZE, size - at))
            if random.random() < 0.4
            else _noise(random, min(CLUSTER_SIZE, size - at))
            for at in range(0, size, CLUSTER_SIZE)
        )
        self.size = size
        archive = open_index(encode({"disk": self.truth}, frame_size=1 << 17))
        self.source = ShakyArchive(ArchiveDrive(ArchiveView([archive]), archive.header.drives[0], POOL), self.weather)
        self.model = _Model(self.truth)
        self.is_new = random.random() < 0.6
        self.disk = PowerDisk(bytes(size) if self.is_new else _noise(random, size), self.weather)
        self.map_path = str(folder / "disk.restoring")
        self.header = RestoringHeader("00" * 16, "11" * 16, "test.vma", "disk", size, "22" * 16, "file", "1")
        with suppress(FileNotFoundError):
            os.unlink(self.map_path)
        PresenceFile.create(self.map_path, self.header, POOL).close_unused()
        self.outcomes: Counter[str] = Counter()
        self.busy: list[tuple[int, int]] = []
        self.over = self.was_lost = False

    async def play(self, sessions: int) -> None:
        for number in range(sessions):
            last = number == sessions - 1
            self._change_weather(fine=last)
            await self._session(last=last)
            if not os.path.exists(self.map_path):
                return

    def _change_weather(self, *, fine: bool) -> None:
        """The last session can be brought to its end, but a write may fail there, too."""
        draw = self.random.choice
        self.weather.slow = draw([0.0, 0.05, 0.3])
        self.weather.read_errors = 0.0
        self.weather.write_errors = draw([0, 0, 0.05])
        self.disk.flush_errors = 0.0 if fine else draw([0, 0, 0, 0.1])
        clusters = -(-self.size // CLUSTER_SIZE)
        lost = self.random.sample(range(clusters), min(clusters, draw([0, 0, 1, 3])))
        self.source.damaged = set() if fine else set(lost)
        self.source.is_lost = False

    # -- one life of the program --

    def _opened(self) -> tuple[CopyBeforeAccess, PresenceFile]:
        record = PresenceFile.open(self.map_path, POOL)
        assert record is not None and record.header == self.header
        device = CopyBeforeAccess(
            self.disk, self.source, is_new=self.is_new, record=_Delayed(record, self.weather), there=record.there()
        )
        self.is_new = False
        return device, record

    async def _session(self, *, last: bool) -> None:
        self.device, record = self._opened()
        self.over = False
        self.busy.clear()
        job = FillJob(
            {"disk": self.device}, speed=self.random.choice([0, 0, 1 << 20]), clock=asyncio.get_running_loop().time
        )
        filling = asyncio.create_task(job.run())
        guests = [asyncio.create_task(self._guest()) for _ in range(self.random.randint(1, 4))]
        torment = asyncio.create_task(self._torment(job))
        try:
            if last:
                await self._to_the_end(filling, guests, torment)
            else:
                await self._until_cut_off(filling, guests)
        finally:
            for task in (torment, *guests, filling):
                task.cancel()
            await asyncio.gather(torment, *guests, filling, return_exceptions=True)
            record.close_unused()

    async def _until_cut_off(self, filling: asyncio.Task[None], guests: list[asyncio.Task[None]]) -> None:
        wait = self.random.choice([0.001, 0.05, 0.5, 3.0, 30.0])
        done, _ = await asyncio.wait([filling, *guests], timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(self.random.randrange(30)):
            await asyncio.sleep(0)
        for task in done:
            if task is not filling:
                task.result()
        if filling.done():
            self._outcome_of(filling)
        self._cut_off()

    def _outcome_of(self, filling: asyncio.Task[None]) -> None:
        try:
            filling.result()
            assert not os.path.exists(self.map_path)
            self.outcomes["filled"] = 1
        except TargetError:
            assert self.device.failure is not None
            self.outcomes["disk lost writes"] += 1

    def _cut_off(self) -> None:
        """Nothing that goes on after this moment counts: the next life begins with what is there now."""
        power = self.random.random() < 0.6
        content = self.disk.after_power_failure() if power else self.disk.after_kill()
        errors, disk = self.disk.flush_errors, self.disk
        self.disk = PowerDisk(content, self.weather)
        self.disk.flush_errors = errors
        disk.weather = Weather(Random(0))  # what is left of the old life draws no lots any more
        self.outcomes["power failure" if power else "kill"] += 1
        if not os.path.exists(self.map_path):
            self.outcomes["filled"] = 1  # just so
            self.model.cut_off(content)
            return
        kept = Path(self.map_path).read_bytes()
        self.map_path = str(self.folder / f"disk{self.outcomes.total()}.restoring")
        Path(self.map_path).write_bytes(kept + self._torn(kept))
        record = PresenceFile.open(self.map_path, POOL)
        assert record is not None
        self.model.cut_off(self._shown(content, record))
        record.close_unused()

    def _torn(self, kept: bytes) -> bytes:
        """A record that did not come to the disk wholly; nobody was told of it."""
        if self.random.random() < 0.5:
            return b""
        runs = [(0, 1)] * self.random.randint(1, 100)
        whole = bytearray(encode_record(bytes.fromhex(self.header.map_id), len(kept), Presence(runs)))
        at = self.random.randrange(0, len(whole), 512)
        whole[at : at + 512] = bytes(512)
        return bytes(whole)

    def _shown(self, content: bytes, record: PresenceFile) -> bytes:
        """What the disk is in the next life."""
        shown = bytearray(self.truth)
        for first, count in record.there():
            at, end = first * CLUSTER_SIZE, (first + count) * CLUSTER_SIZE
            shown[at:end] = content[at:end]
        return bytes(shown)

    async def _to_the_end(
        self, filling: asyncio.Task[None], guests: list[asyncio.Task[None]], torment: asyncio.Task[None]
    ) -> None:
        await asyncio.wait([*guests], timeout=self.random.choice([0.1, 2.0]), return_when=asyncio.FIRST_COMPLETED)
        self.over = True
        await asyncio.gather(*guests, torment)
        await asyncio.wait_for(filling, LONGEST)
        assert self.device.is_whole and not os.path.exists(self.map_path)
        assert self.disk.disk.contents() == self.model.now
        self.model.cut_off(self.disk.after_power_failure())
        self.outcomes["filled"] = 1

    async def _torment(self, job: FillJob) -> None:
        for _ in range(self.random.randint(0, 10)):
            await asyncio.sleep(self.random.choice([0, 0.001, 0.2, 5.0]))
            match self.random.choice(["pause", "resume", "speed", "lost", "found"]):
                case "pause":
                    job.pause()
                case "resume":
                    job.resume()
                case "speed":
                    job.set_speed(self.random.choice([0, 100_000, 1 << 20]))
                case "lost":
                    self.source.is_lost = self.was_lost = True
                case "found":
                    self.source.is_lost = False
        self.source.is_lost = False
        job.set_speed(0)
        job.resume()

    # -- guests --

    async def _guest(self) -> None:
        while not self.over:
            await self.weather.wait()
            start, end = self._range()
            if all(end <= low or high <= start for low, high in self.busy):
                self.busy.append((start, end))
                await self._request(start, end)
                self.busy.remove((start, end))
            await asyncio.sleep(self.random.choice([0, 0, 0.001, 0.01, 0.2]))

    def _range(self) -> tuple[int, int]:
        start = self.random.randrange(self.size)
        if self.random.random() < 0.4:
            start -= start % CLUSTER_SIZE
        most = self.random.choice([1, 4096, CLUSTER_SIZE, 3 * CLUSTER_SIZE, self.size])
        end = min(self.size, start + self.random.randint(1, most))
        if self.random.random() < 0.4 and end - end % CLUSTER_SIZE > start:
            end -= end % CLUSTER_SIZE
        return start, end

    async def _request(self, start: int, end: int) -> None:
        match self.random.choice(["write", "write", "now", "zero", "discard", "flush", "flush", "read", "read"]):
            case "write":
                await self._change(start, _noise(self.random, end - start), self.device.pwrite)
            case "now":
                await self._change(start, _noise(self.random, end - start), self._write_now)
            case "zero":
                await self._change(start, bytes(end - start), self._zero)
            case "discard":
                await self._discard(start, end)
            case "flush":
                await self._flush()
            case "read":
                await self._read(start, end)

    async def _write_now(self, offset: int, data: bytes) -> None:
        if not self.device.write_now(offset, data):
            await self.device.pwrite(offset, data)

    async def _zero(self, offset: int, data: bytes) -> None:
        await self.device.write_zeroes(offset, len(data))

    async def _change(self, start: int, data: bytes, change: Callable[[int, bytes], Any]) -> None:
        key = self.model.step()
        self.model.under_way[key] = start, data
        task = asyncio.create_task(change(start, data))
        if self.random.random() < 0.05:
            await self.weather.wait()
            task.cancel()  # the client has vanished
        try:
            await task
        except (OSError, asyncio.CancelledError):
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            self._adopt(start, data)
        else:
            self.model.written(start, data)
        self.model.under_way.pop(key, None)

    def _adopt(self, start: int, data: bytes) -> None:
        """A change that failed: each byte is old or new, and may become the other one by a crash."""
        found = self._seen(start, len(data))
        before = self.model.now[start : start + len(data)]
        assert all(one in pair for one, pair in zip(found, zip(before, data, strict=True), strict=True))
        self.model.written(start, data)
        self.model.written(start, found)

    def _seen(self, start: int, length: int) -> bytes:
        """What a read would give, without one."""
        seen = bytearray(self.truth)
        at = 0
        clusters = self.device.claims.clusters
        while at < clusters:
            end, there = self.device.claims.run_at(at, clusters)
            if there:
                low, high = at * CLUSTER_SIZE, min(self.size, end * CLUSTER_SIZE)
                seen[low:high] = self.disk.disk.read_now(low, high - low)
            at = end
        return bytes(seen[start : start + length])

    async def _discard(self, start: int, end: int) -> None:
        key = self.model.step()
        self.model.under_way[key] = start, bytes(end - start)
        with suppress(OSError):
            await self.device.discard(start, end - start)
        # Whatever it is now; and a crash may bring zeros.
        found = self._seen(start, end - start)
        self.model.written(start, bytes(end - start))
        self.model.written(start, found)
        self.model.under_way.pop(key, None)

    async def _flush(self) -> None:
        begun = self.model.flush_begins()
        try:
            await self.device.flush()
        except OSError:
            assert self.device.failure is not None
            self.outcomes["flush failed"] += 1
            return
        self.model.flushed(begun)
        self.outcomes["flushed"] += 1

    async def _read(self, start: int, end: int) -> None:
        try:
            found = self.device.read_now(start, end - start)
            if found is None:
                found = await self.device.pread(start, end - start)
        except (OSError, PybackupError):
            assert self.weather.write_errors or self.source.damaged or self.was_lost
            self.outcomes["EIO"] += 1
            return
        assert bytes(found) == self.model.now[start:end]
        if isinstance(found, bytearray):
            found[:] = b"!" * len(found)  # it belongs to the caller


class _Delayed:
    """A record that takes its time."""

    def __init__(self, inner: PresenceFile, weather: Weather) -> None:
        self._inner, self._weather = inner, weather

    @property
    def wants_all(self) -> bool:
        return self._inner.wants_all or self._weather.random.random() < 0.1

    async def add(self, runs: Sequence[tuple[int, int]]) -> None:
        await self._weather.wait()
        await self._inner.add(runs)
        await self._weather.wait()

    async def replace(self, absent: Any) -> None:
        await self._weather.wait()
        await self._inner.replace(absent)
        await self._weather.wait()

    async def remove(self) -> None:
        await self._inner.remove()

    async def close(self) -> None:
        await self._inner.close()


def _noise(random: Random, length: int) -> bytes:
    pattern = random.randbytes(31)
    return (pattern * (length // 31 + 1))[:length]
