from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from doubles import FaultyDevice
from virtual_time import run

from pybackup.core.cow.claims import Claims
from pybackup.core.cow.copy_before_write import CopyBeforeWrite, freeze
from pybackup.core.cow.guest_copies import GuestCopies, OnError
from pybackup.core.cow.old_data import OldData
from pybackup.core.device import CLUSTER_SIZE, BlockDevice, Buffer
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.errors import Advice, BusyError, SourceError, TargetError
from pybackup.core.trace import Trace

K = CLUSTER_SIZE


class SlowDevice(MemoryDevice):
    """Every read and write takes a second, and nothing can be done at once."""

    async def pread(self, offset: int, length: int) -> Buffer:
        await asyncio.sleep(1)
        return super().read_now(offset, length)

    async def pwrite(self, offset: int, data: Buffer) -> None:
        await asyncio.sleep(1)
        super().write_now(offset, data)

    def read_now(self, offset: int, length: int) -> Any:
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False


@dataclass
class Backup:
    """A filter in front of a device, and what a backup of it has to have."""

    child: BlockDevice
    on_error: OnError = OnError.BREAK_BACKUP
    limit: int = 64 << 20
    timeout: float | None = 30.0
    copy_on_read: bool = False
    errors: list[BaseException] = field(default_factory=list)
    charged: int = 0

    def __post_init__(self) -> None:
        self.filter = CopyBeforeWrite(self.child)
        self.copy = Claims(self.child.size)
        self.old_data = OldData(self.limit)
        self.guard = GuestCopies(
            drive_id=1,
            name="disk",
            source=self.child,
            claims=self.copy,
            old_data=self.old_data,
            on_error=self.on_error,
            timeout=self.timeout,
            copy_on_read=self.copy_on_read,
            charge=self._charge,
            break_backup=self.errors.append,
            trace=Trace(),
        )

    def _charge(self, size: int) -> None:
        self.charged += size

    async def begin(self) -> Backup:
        await freeze([(self.filter, self.guard)])
        return self

    async def saved(self) -> dict[int, bytes]:
        """The old data saved so far, by its first cluster."""
        found: dict[int, bytes] = {}
        while not self.old_data.is_empty:
            batch = await self.old_data.take()
            found.update({one.first: bytes(one.content) for one in batch})
            self.old_data.release(batch)
        return found


CHANGES: list[Callable[[CopyBeforeWrite], Any]] = [
    lambda disk: disk.pwrite(K + 5, b"new"),
    lambda disk: disk.write_zeroes(K + 5, 3),
    lambda disk: disk.discard(K + 5, 3),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("device", [MemoryDevice, SlowDevice])
def test_old_data_is_saved_before_it_changes(device: type[MemoryDevice], change: Any) -> None:
    async def main() -> None:
        backup = await Backup(device(b"a" * K + b"b" * K + b"c" * 10)).begin()
        await change(backup.filter)
        await change(backup.filter)
        assert await backup.saved() == {1: b"b" * K}
        assert backup.charged == K
        assert not backup.copy.is_untouchable(1, 2) and backup.copy.is_dirty(0, 1)

    run(main())


def test_a_write_to_a_copied_cluster_is_made_at_once() -> None:
    async def main() -> None:
        backup = await Backup(MemoryDevice(3 * K)).begin()
        assert backup.filter.write_now(5, b"x") and backup.filter.write_now(6, b"y")
        assert list(await backup.saved()) == [0]
        claimed = backup.copy.claim(1, 2)
        assert claimed is not None
        assert not backup.filter.write_now(K, b"somebody is copying this")
        assert backup.filter.write_now(7, b"but not that")
        backup.copy.settle(claimed, copied=True)
        assert backup.filter.write_now(K, b"now")

    run(main())


def test_a_write_of_no_bytes_saves_nothing_of_others() -> None:
    async def main() -> None:
        backup = await Backup(MemoryDevice(2 * K)).begin()
        await backup.filter.pwrite(K, b"")
        await backup.filter.pwrite(2 * K, b"")
        assert backup.filter.write_now(0, b"")
        assert await backup.saved() == {}

    run(main())


def test_a_large_change_does_not_wait_for_the_background_loop_to_pass() -> None:
    """Whatever the loop is at, somewhere in the range, the rest of it is saved meanwhile."""

    async def main() -> None:
        backup = await Backup(MemoryDevice(b"x" * 100 * K)).begin()
        claimed = backup.copy.claim(0, 8)
        change = asyncio.create_task(backup.filter.discard(0, 100 * K))
        await asyncio.sleep(1)
        assert not change.done() and not backup.copy.is_dirty(0, 100)
        assert claimed is not None
        backup.copy.settle(claimed, copied=True)
        await change
        assert sum(map(len, (await backup.saved()).values())) == 92 * K

    run(main())


# -- freezing --


def test_arming_waits_for_changes_in_flight_and_new_ones_wait_for_it() -> None:
    async def main() -> None:
        backups = [Backup(SlowDevice(b"old" * K)), Backup(SlowDevice(b"old" * K)), Backup(MemoryDevice(b"old" * K))]
        begun = [asyncio.create_task(backup.filter.pwrite(0, b"1")) for backup in backups[:2]]
        await asyncio.sleep(0.5)
        freezing = asyncio.create_task(freeze([(backup.filter, backup.guard) for backup in backups]))
        await asyncio.sleep(0.1)
        later = [asyncio.create_task(backup.filter.pwrite(1, b"2")) for backup in backups]
        assert not backups[2].filter.write_now(1, b"2")
        await asyncio.sleep(0.3)
        assert not freezing.done() and not any(backup.filter.is_armed for backup in backups)
        await freezing
        assert all(one.done() for one in begun) and not any(one.done() for one in later[:2])
        await asyncio.gather(*later)
        for backup, start in zip(backups, [b"1ld", b"1ld", b"old"], strict=True):
            assert (await backup.saved())[0][:3] == start

    run(main())


def test_a_freeze_that_is_cancelled_lets_everybody_go() -> None:
    async def main() -> None:
        backup = Backup(SlowDevice(K))
        change = asyncio.create_task(backup.filter.pwrite(0, b"x"))
        await asyncio.sleep(0)
        freezing = asyncio.create_task(backup.begin())
        await asyncio.sleep(0.1)
        waits = asyncio.create_task(backup.filter.pwrite(1, b"y"))
        await asyncio.sleep(0.1)
        freezing.cancel()
        await asyncio.gather(change, waits)
        assert not backup.filter.is_armed
        assert (await backup.filter.pread(0, 2)) == b"xy"
        await backup.begin()

    run(main())


def test_a_write_that_hangs_fails_the_backup_and_no_guest_waits_longer() -> None:
    class HungDevice(MemoryDevice):
        def write_now(self, offset: int, data: Buffer) -> bool:
            return False

        async def pwrite(self, offset: int, data: Buffer) -> None:
            await hung.wait()

    async def main() -> None:
        backups = [Backup(MemoryDevice(K)), Backup(HungDevice(K, name="stuck.img"))]
        change = asyncio.create_task(backups[1].filter.pwrite(0, b"x"))
        await asyncio.sleep(0)
        pairs = [(backup.filter, backup.guard) for backup in backups]
        freezing = asyncio.create_task(freeze(pairs, timeout=30))
        await asyncio.sleep(29)
        waits = asyncio.create_task(backups[0].filter.pwrite(1, b"y"))
        with pytest.raises(SourceError, match=r"a write to stuck\.img .* did not end within 30 seconds"):
            await freezing
        await waits
        assert asyncio.get_running_loop().time() == 30
        assert not any(backup.filter.is_armed for backup in backups)
        hung.set()
        await change
        await freeze(pairs, timeout=30)

    hung = asyncio.Event()
    run(main())


def test_a_second_backup_is_refused_and_the_first_goes_on() -> None:
    async def main() -> None:
        first, other = Backup(MemoryDevice(K)), Backup(MemoryDevice(K))
        second = Backup(MemoryDevice(K))
        await first.begin()
        with pytest.raises(BusyError):
            await freeze([(other.filter, other.guard), (first.filter, second.guard)])
        first.filter.disarm(second.guard)
        assert first.filter.is_armed and not other.filter.is_armed
        assert other.filter.write_now(0, b"x"), "it is not held"
        first.filter.disarm(first.guard)
        await freeze([(other.filter, other.guard), (first.filter, second.guard)])

    run(main())


def test_who_waits_for_one_backup_is_guarded_for_the_next() -> None:
    async def main() -> None:
        disk = SlowDevice(b"o" * K)
        first = await Backup(disk).begin()
        second = Backup(disk)
        claimed = first.copy.claim(0, 1)
        change = asyncio.create_task(first.filter.pwrite(0, b"n"))
        await asyncio.sleep(0)
        first.filter.disarm(first.guard)
        await freeze([(first.filter, second.guard)])
        assert claimed is not None
        first.copy.settle(claimed, copied=False)
        await change
        assert await second.saved() == {0: b"o" * K}

    run(main())


# -- when old data cannot be saved --


def test_break_backup_lets_the_guest_go_on() -> None:
    async def main() -> None:
        backup = await Backup(FaultyDevice(MemoryDevice(b"o" * 2 * K), reads="E")).begin()
        await backup.filter.pwrite(0, b"new")
        assert isinstance(backup.errors[0], SourceError) and "drive disk at byte 0" in str(backup.errors[0])
        assert await backup.filter.pread(0, 3) == b"new"
        await backup.filter.pwrite(K, b"new")
        assert await backup.saved() == {} and len(backup.errors) == 1

    run(main())


def test_break_guest_changes_nothing_and_keeps_the_backup() -> None:
    async def main() -> None:
        backup = await Backup(FaultyDevice(MemoryDevice(b"o" * K), reads="E"), on_error=OnError.BREAK_GUEST).begin()
        with pytest.raises(OSError) as caught:
            await backup.filter.pwrite(0, b"new")
        assert caught.value.errno == errno.EIO and not backup.errors
        assert backup.copy.is_dirty(0, 1)
        await backup.filter.pwrite(0, b"new")
        assert await backup.saved() == {0: b"o" * K}

    run(main())


def test_a_source_that_times_out_is_the_source_failing() -> None:
    class TimedOut(SlowDevice):
        async def pread(self, offset: int, length: int) -> Buffer:
            raise OSError(errno.ETIMEDOUT, "Connection timed out")

    async def main() -> None:
        backup = await Backup(TimedOut(K)).begin()
        await backup.filter.pwrite(0, b"x")
        assert isinstance(backup.errors[0], SourceError)

    run(main())


@pytest.mark.parametrize("policy", list(OnError))
def test_a_guest_waits_for_room_only_so_long(policy: OnError) -> None:
    async def main() -> None:
        backup = await Backup(MemoryDevice(b"o" * 3 * K), policy, limit=K, timeout=30.0).begin()
        loop = asyncio.get_running_loop()
        await backup.filter.pwrite(0, b"x")
        assert loop.time() == 0
        try:
            await backup.filter.pwrite(K, b"x")
        except OSError as error:
            assert policy is OnError.BREAK_GUEST and error.errno == errno.EIO
            assert not backup.errors and backup.copy.is_dirty(1, 2)
        else:
            assert isinstance(backup.errors[0], TargetError) and backup.errors[0].advice is Advice.MORE_ROOM
        assert loop.time() == 30.0
        assert not backup.copy.is_in_flight(0, 3)

    run(main())


def test_a_guest_that_waits_goes_on_when_there_is_room() -> None:
    async def main() -> None:
        backup = await Backup(MemoryDevice(b"o" * 3 * K), limit=K, timeout=None).begin()
        await backup.filter.pwrite(0, b"x")
        waits = asyncio.create_task(backup.filter.pwrite(K, b"x"))
        await asyncio.sleep(1000)
        assert not waits.done()
        assert list(await backup.saved()) == [0]
        await waits
        assert list(await backup.saved()) == [1]

    run(main())


def test_a_client_that_vanishes_leaves_no_claim() -> None:
    async def main() -> None:
        backup = await Backup(SlowDevice(b"o" * 3 * K), limit=K, timeout=None).begin()
        await backup.filter.pwrite(0, b"x")
        waits_for_room = asyncio.create_task(backup.filter.pwrite(K, b"x"))
        reads = asyncio.create_task(backup.filter.pwrite(2 * K, b"x"))
        waits_for_it = asyncio.create_task(backup.filter.pwrite(2 * K + 9, b"x"))
        await asyncio.sleep(0.5)
        reads.cancel()
        await asyncio.sleep(3)
        waits_for_room.cancel()
        await asyncio.wait([reads, waits_for_room])
        assert backup.copy.is_dirty(1, 2)
        assert list(await backup.saved()) == [0]
        await waits_for_it
        assert list(await backup.saved()) == [2]
        assert not backup.copy.is_in_flight(0, 3)

    run(main())


def test_disarming_lets_waiting_guests_go() -> None:
    async def main() -> None:
        backup = await Backup(MemoryDevice(b"o" * 2 * K), limit=K, timeout=None).begin()
        await backup.filter.pwrite(0, b"x")
        waits = asyncio.create_task(backup.filter.pwrite(K, b"x"))
        await asyncio.sleep(1)
        backup.filter.disarm(backup.guard)
        backup.old_data.close()
        await waits
        assert not backup.errors and not backup.filter.is_armed

    run(main())


class Counting(SlowDevice):
    """Counts the bytes that are being read, or were and are held by the reader, at their most."""

    reading = most = 0

    async def pread(self, offset: int, length: int) -> Buffer:
        self.reading += length
        self.most = max(self.most, self.reading)
        try:
            return await super().pread(offset, length)
        finally:
            self.reading -= length


@pytest.mark.parametrize("change", ["pwrite", "discard", "write_zeroes"])
def test_requests_in_flight_read_no_more_than_there_is_room_for(change: str) -> None:
    async def main() -> None:
        disk = Counting(b"o" * 100 * K)
        backup = await Backup(disk, limit=10 * K, timeout=None).begin()
        argument: Any = b"x" * 4 * K if change == "pwrite" else 4 * K
        begun = [asyncio.create_task(getattr(backup.filter, change)(at * K, argument)) for at in range(0, 100, 4)]
        await asyncio.sleep(100)
        assert disk.most == 8 * K == backup.old_data.in_memory, "25 requests, and room for two of them"
        found: dict[int, bytes] = {}
        while not all(one.done() for one in begun):
            found |= await backup.saved()
            assert backup.old_data.in_memory <= 10 * K
            await asyncio.sleep(1)
        found |= await backup.saved()
        assert found == dict.fromkeys(range(0, 100, 4), b"o" * 4 * K) and disk.most <= 10 * K

    run(main())


@pytest.mark.parametrize("copy_on_read", [False, True])
def test_room_that_was_not_used_is_given_back(copy_on_read: bool) -> None:
    async def main() -> None:
        child = FaultyDevice(MemoryDevice(b"o" * 3 * K), reads="EEE")
        backup = await Backup(child, OnError.BREAK_GUEST, limit=K, copy_on_read=copy_on_read).begin()
        if copy_on_read:
            with suppress(OSError):
                await backup.filter.pread(0, 3)
        with pytest.raises(OSError):
            await backup.filter.pwrite(0, b"x")
        with suppress(OSError):
            backup.filter.write_now(0, b"x")
        assert backup.old_data.in_memory == 0 and backup.copy.is_dirty(0, 1)

    run(main())


# -- copy on read --


def test_a_read_saves_what_it_touches() -> None:
    async def main() -> None:
        backup = await Backup(MemoryDevice(b"a" * K + b"b" * K), copy_on_read=True).begin()
        assert backup.filter.read_now(K + 1, 5) is None
        found = await backup.filter.pread(K + 1, 5)
        assert found == b"bbbbb"
        assert backup.filter.read_now(K + 1, 5) == b"bbbbb", "at once, for it is saved"
        await backup.filter.pwrite(K, b"x")
        assert await backup.saved() == {1: b"b" * K}

    run(main())


def test_a_read_never_waits_for_the_backup_nor_fails_because_of_it() -> None:
    async def main() -> None:
        child = FaultyDevice(MemoryDevice(b"o" * 3 * K), reads="E")
        backup = await Backup(child, limit=K, copy_on_read=True).begin()
        assert await backup.filter.pread(5, 3) == b"ooo", "the cluster cannot be read, but these bytes can"
        assert backup.copy.is_dirty(0, 1)
        await backup.filter.pwrite(0, b"x")
        assert await backup.filter.pread(K, 3) == b"ooo"
        assert backup.copy.is_dirty(1, 2) and not backup.copy.is_in_flight(0, 3)

    run(main())
