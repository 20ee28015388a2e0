from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from doubles import FaultyDevice
from nbd_peer import NbdPeer, leave
from nbd_serving import SIZE, Watched, run, serving, until

from pybackup.core.device import BlockStatus, Buffer
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.errors import SourceChangedError
from pybackup.formats import nbd_wire as wire

FUA = wire.CMD_FLAG_FUA


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "nbd.sock")


# -- requests --


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("structured", [True, False])
def test_what_is_written_is_read(path: str, structured: bool, inline: bool) -> None:
    async def test() -> None:
        device = Watched(inline=inline)
        async with serving(path, device):
            peer = await NbdPeer.connect(path, structured=structured)
            for offset, length in [(0, 1), (4095, 4098), (100_000, 70_000), (SIZE - 300_000, 300_000)]:
                data = bytes(range(1, 251)) * (length // 250) + b"x" * (length % 250)
                assert (await peer.ask(wire.CMD_WRITE, offset, data=data)).error == 0
                assert (await peer.ask(wire.CMD_READ, offset, length)).data == data
                assert device.memory.contents()[offset : offset + length] == data
            assert (await peer.ask(wire.CMD_READ, 5, 0)).data == b""
            assert (await peer.ask(wire.CMD_WRITE, 5, 0)).error == 0
            await peer.leave()

    run(test())


@pytest.mark.parametrize("length", [10, 4096, 65536, 65537, 200_000])
def test_the_data_of_waiting_writes_stays_as_it_was(path: str, length: int) -> None:
    async def test() -> None:
        device = Watched(40 * length)
        async with serving(path, device):
            peer = await NbdPeer.connect(path)
            for round_number in range(3):
                device.shut()
                for number in range(40):
                    peer.start(wire.CMD_WRITE, number * length, data=bytes([number, round_number]) * (length // 2))
                await until(lambda: len(device.calls) == 40)
                device.gate.set()
                assert not any(reply.error for reply in (await peer.replies(40)).values())
                device.calls.clear()
                for number in range(40):
                    written = device.memory.contents()[number * length :][: length // 2 * 2]
                    assert written == bytes([number, round_number]) * (length // 2)
            await peer.leave()

    run(test())


def test_every_command_reaches_the_device(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device):
            peer = await NbdPeer.connect(path)
            no_hole, fast = wire.CMD_FLAG_NO_HOLE, wire.CMD_FLAG_FAST_ZERO
            requests = [
                (wire.CMD_TRIM, 1, 2, 0, [("discard", 1, 2)]),
                (wire.CMD_TRIM, 1, 2, FUA, [("discard", 1, 2), ("flush",)]),
                (wire.CMD_WRITE_ZEROES, 3, 4, 0, [("zero", 3, 4, True, False)]),
                (wire.CMD_WRITE_ZEROES, 3, 4, no_hole | FUA, [("zero", 3, 4, False, False), ("flush",)]),
                (wire.CMD_WRITE_ZEROES, 3, 4, fast, [("zero", 3, 4, True, True)]),
                (wire.CMD_FLUSH, 0, 0, 0, [("flush",)]),
                (wire.CMD_CACHE, 5, 6, 0, [("pread", 5, 6)]),
            ]
            for command, offset, length, flags, calls in requests:
                device.calls.clear()
                assert (await peer.ask(command, offset, length, flags)).error == 0
                assert device.calls == calls
            device.calls.clear()
            assert (await peer.ask(wire.CMD_WRITE, 7, flags=FUA, data=b"12")).error == 0
            assert device.calls == [("pwrite", 7, 2), ("flush",)]
            await peer.leave()

    run(test())


def test_cache_reads_in_pieces(path: str) -> None:
    async def test() -> None:
        device = Watched(5 << 19)
        async with serving(path, device):
            peer = await NbdPeer.connect(path)
            assert (await peer.ask(wire.CMD_CACHE, 0, 5 << 19)).error == 0
            assert device.calls == [("pread", 0, 1 << 20), ("pread", 1 << 20, 1 << 20), ("pread", 2 << 20, 1 << 19)]
            await peer.leave()

    run(test())


def test_fua_and_flush_answer_when_they_are_done(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device):
            peer, other = await NbdPeer.connect(path), await NbdPeer.connect(path)
            device.gate.clear()
            flush = peer.start(wire.CMD_FLUSH)
            await until(lambda: device.calls == [("flush",)])
            assert (await other.ask(wire.CMD_READ, 0, 1)).error == 0
            read = peer.start(wire.CMD_READ, 0, 1)
            assert (await peer.reply()).cookie == read
            device.gate.set()
            assert (await peer.reply()).cookie == flush
            await leave([peer, other])

    run(test())


def test_block_status_tells_zeros_and_holes(path: str) -> None:
    class Mapped(MemoryDevice):
        async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
            every = [(False, False), (False, True), (True, False), (True, True), (True, True)]
            return [BlockStatus(offset + i, 1, zero, hole) for i, (zero, hole) in enumerate(every)][:length]

    async def test() -> None:
        async with serving(path, Mapped(SIZE)):
            peer = await NbdPeer.connect(path)
            assert (await peer.ask(wire.CMD_BLOCK_STATUS, 10, 100)).extents == [(1, 0), (1, 1), (1, 2), (2, 3)]
            one = wire.CMD_FLAG_REQ_ONE
            assert (await peer.ask(wire.CMD_BLOCK_STATUS, 10, 100, one)).extents == [(1, 0)]
            await peer.leave()

    run(test())


def test_a_slow_read_keeps_no_other_request_waiting(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device):
            peer, other = await NbdPeer.connect(path), await NbdPeer.connect(path)
            device.shut()
            slow = peer.start(wire.CMD_READ, 0, 4096)
            await until(lambda: bool(device.calls))
            device.inline = True
            quick = peer.start(wire.CMD_READ, 4096, 4096)
            assert (await peer.reply()).cookie == quick
            assert (await other.ask(wire.CMD_READ, 0, 4096)).error == 0
            device.gate.set()
            assert (await peer.reply()).cookie == slow
            await leave([peer, other])

    run(test())


def test_a_read_that_comes_a_moment_later_needs_no_thread(path: str) -> None:
    class Late(Watched):
        asked = 0

        def read_now(self, offset: int, length: int) -> Buffer | None:
            self.asked += 1
            return super().read_now(offset, length) if self.asked > 1 else None

    async def test() -> None:
        device = Late(b"later" + bytes(SIZE))
        async with serving(path, device):
            peer = await NbdPeer.connect(path)
            assert (await peer.ask(wire.CMD_READ, 0, 5)).data == b"later"
            assert (device.asked, device.calls) == (2, [])
            await peer.leave()

    run(test())


# -- errors --


def test_failures_of_the_device_have_their_errno(path: str) -> None:
    async def test() -> None:
        faulty = FaultyDevice(MemoryDevice(SIZE), reads="rE", writes="NEw")
        async with serving(path, faulty):
            peer = await NbdPeer.connect(path)
            assert (await peer.ask(wire.CMD_READ, 0, 1)).error == 0
            broken = await peer.ask(wire.CMD_READ, 0, 1)
            assert (broken.error, broken.message) == (wire.NBD_EIO, "Input/output error")
            assert (await peer.ask(wire.CMD_WRITE, data=b"x")).error == wire.NBD_ENOSPC
            assert (await peer.ask(wire.CMD_TRIM, 0, 1)).error == wire.NBD_EIO
            assert (await peer.ask(wire.CMD_WRITE, data=b"x")).error == 0
            assert faulty.calls == {"read": 2, "write": 3}
            await peer.leave()

    run(test())


def test_other_failures_are_eio(path: str, caplog: pytest.LogCaptureFixture) -> None:
    class Odd(MemoryDevice):
        def read_now(self, offset: int, length: int) -> bytes:
            if offset == 1:
                raise SourceChangedError("the disk shrank")
            raise ZeroDivisionError

        async def write_zeroes(self, offset: int, length: int, **_: bool) -> None:
            raise OSError(errno.EOPNOTSUPP, "no")

    async def test() -> None:
        async with serving(path, Odd(SIZE)):
            peer = await NbdPeer.connect(path)
            shrank = await peer.ask(wire.CMD_READ, 1, 1)
            assert (shrank.error, shrank.message) == (wire.NBD_EIO, "the disk shrank")
            assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
            bug = await peer.ask(wire.CMD_READ, 0, 1)
            assert (bug.error, bug.message) == (wire.NBD_EIO, "internal error")
            assert "ZeroDivisionError" in caplog.text
            assert (await peer.ask(wire.CMD_WRITE_ZEROES, 0, 1)).error == wire.NBD_EINVAL
            fast = await peer.ask(wire.CMD_WRITE_ZEROES, 0, 1, wire.CMD_FLAG_FAST_ZERO)
            assert fast.error == wire.NBD_ENOTSUP
            await peer.leave()

    run(test())


@pytest.mark.parametrize("inline", [True, False])
def test_a_read_of_the_wrong_length_is_an_error(path: str, inline: bool) -> None:
    class Short(MemoryDevice):
        def read_now(self, offset: int, length: int) -> bytes | None:  # type: ignore[override]
            return b"too short" if inline else None

        async def pread(self, offset: int, length: int) -> bytes:
            return b"too short"

    async def test() -> None:
        async with serving(path, Short(SIZE)):
            for structured in (True, False):
                peer = await NbdPeer.connect(path, structured=structured)
                assert (await peer.ask(wire.CMD_READ, 0, 100)).error == wire.NBD_EIO
                assert (await peer.ask(wire.CMD_FLUSH)).error == 0
                await peer.leave()

    run(test())


def test_bad_requests_are_refused_and_the_connection_goes_on(path: str) -> None:
    async def test() -> None:
        device = Watched()
        async with serving(path, device):
            for structured in (True, False):
                peer = await NbdPeer.connect(path, structured=structured)
                peer.reads.clear()
                assert (await peer.ask(wire.CMD_READ, SIZE, 1)).error == wire.NBD_EINVAL
                assert (await peer.ask(wire.CMD_READ, 0, (32 << 20) + 1)).error == wire.NBD_EINVAL
                assert (await peer.ask(wire.CMD_READ, 0, 1, 1 << 9)).error == wire.NBD_EINVAL
                assert (await peer.ask(99)).error == wire.NBD_EINVAL
                assert (await peer.ask(wire.CMD_WRITE, SIZE - 1, data=b"xy")).error == wire.NBD_ENOSPC
                assert (await peer.ask(wire.CMD_WRITE, 0, data=bytes((32 << 20) + 1))).error == wire.NBD_EINVAL
                assert (await peer.ask(wire.CMD_READ, 0, 1)).data == b"\0"
                await peer.leave()
            assert device.calls == []

    run(test())


def test_a_read_only_disk_is_not_changed(path: str) -> None:
    async def test() -> None:
        device = MemoryDevice(b"secret", read_only=True)
        async with serving(path, device):
            peer = await NbdPeer.connect(path)
            for command in (wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES):
                data = b"xx" if command == wire.CMD_WRITE else b""
                assert (await peer.ask(command, 0, 2, data=data)).error == wire.NBD_EPERM
            assert (await peer.ask(wire.CMD_READ, 0, 6)).data == b"secret"
            assert (await peer.ask(wire.CMD_FLUSH)).error == 0
            await peer.leave()
        assert device.contents() == b"secret"

    run(test())
