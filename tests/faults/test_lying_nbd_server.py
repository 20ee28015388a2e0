"""What an NBD server says is not believed: each lie is one error of ours; never a hang, a crash, or wrong data."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from device_contract import pattern
from nbd_double import (
    ALL_FLAGS,
    CONTEXT,
    Asked,
    Export,
    Line,
    PlainDisk,
    Speaking,
    chunk,
    data,
    done,
    error,
    greeting,
    hole,
    option_reply,
    simple,
    speaking,
    status,
)

from pybackup.core.errors import SourceError
from pybackup.core.nbd.client import NbdDevice
from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.formats import nbd_wire as wire

SIZE = 1 << 20
DISK = pattern(SIZE)


def run(tmp_path: Path, speak: Speaking, test: Callable[[NbdAddress], Coroutine[Any, Any, None]]) -> None:
    """The test beside the server, in virtual time: who waits for ever is found at once."""

    async def within() -> None:
        path = os.path.relpath(tmp_path / "nbd.sock")
        async with speaking(path, speak):
            await test(NbdAddress("disk", socket=path))

    virtual_time.run(within())


def run_on_device(tmp_path: Path, speak: Speaking, test: Callable[[NbdDevice], Coroutine[Any, Any, None]]) -> None:
    async def connected(address: NbdAddress) -> None:
        device = await NbdDevice.connect(address, name="it")
        try:
            await test(device)
        finally:
            await device.close()

    run(tmp_path, speak, connected)


# -- the handshake --


def says(*parts: bytes) -> Speaking:
    """Sends this at once, and then only listens."""

    async def speak(line: Line) -> None:
        line.send(*parts)
        await line.until_gone()

    return speak


def says_and_leaves(*parts: bytes) -> Speaking:
    async def speak(line: Line) -> None:
        line.send(*parts)

    return speak


def answers(*parts: bytes, to: int = wire.OPT_STRUCTURED_REPLY, forever: bool = False, leave: bool = False) -> Speaking:
    """Behaves until an option comes, and answers that one so."""

    async def speak(line: Line) -> None:
        await line.greet()
        while (option := (await line.option())[0]) != to:
            kind = wire.REP_ACK if option == wire.OPT_STRUCTURED_REPLY else wire.REP_ERR_UNSUP
            line.send(option_reply(option, kind))
        line.send(*parts)
        while forever:
            line.send(*parts)
            await line.writer.drain()
        if not leave:
            await line.until_gone()

    return speak


def goes(*infos: bytes) -> Speaking:
    replies = [option_reply(wire.OPT_GO, wire.REP_INFO, info) for info in infos]
    return answers(*replies, option_reply(wire.OPT_GO, wire.REP_ACK), to=wire.OPT_GO)


def told(size: int, flags: int = ALL_FLAGS) -> bytes:
    return wire.INFO_EXPORT_REPLY.pack(wire.INFO_EXPORT, size, flags)


def blocks(smallest: int, preferred: int, largest: int) -> bytes:
    return wire.INFO_BLOCK_SIZE_REPLY.pack(wire.INFO_BLOCK_SIZE, smallest, preferred, largest)


STRUCTURED, META, GO = wire.OPT_STRUCTURED_REPLY, wire.OPT_SET_META_CONTEXT, wire.OPT_GO
NO_NBD = "this is no NBD server"
HANDSHAKES = {
    "silence": (says(), "it does not answer"),
    "it leaves at once": (says_and_leaves(), "it ended the connection"),
    "half a greeting": (says_and_leaves(greeting()[:9]), "it ended the connection"),
    "half a greeting, then silence": (says(greeting()[:9]), "it does not answer"),
    "a web server": (says_and_leaves(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), NO_NBD),
    "an ssh server": (says(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"), NO_NBD),
    "a short greeting of another": (says(b"220 mail\r\n"), "it does not answer"),
    "wrong magic": (says(greeting(magic=1)), NO_NBD),
    "the oldstyle protocol": (says(greeting(option_magic=0x420281861253)), "too old"),
    "not the fixed protocol": (says(greeting(flags=2)), "too old"),
    "a reply without magic": (answers(bytes(20)), "no reply to an option"),
    "a reply to another option": (answers(option_reply(GO, wire.REP_ACK)), "an option that was not asked"),
    "a reply that is too long": (answers(option_reply(STRUCTURED, wire.REP_ACK, length=1 << 14)), "16384 bytes"),
    "a reply of 4 GiB": (answers(option_reply(GO, wire.REP_INFO, length=0xFFFFFFFF), to=GO), "4294967295 bytes"),
    "half a reply": (answers(option_reply(STRUCTURED, wire.REP_ACK)[:11], leave=True), "it ended the connection"),
    "half the data of a reply": (answers(option_reply(GO, wire.REP_INFO, b"x", 9), to=GO, leave=True), "ended"),
    "replies without end": (
        answers(option_reply(STRUCTURED, wire.REP_SERVER, bytes(4000)), forever=True),
        "no end of replies",
    ),
    "contexts without end": (
        answers(option_reply(META, wire.REP_META_CONTEXT, bytes(4000)), to=META, forever=True),
        "no end of replies",
    ),
    "a context without an id": (
        answers(
            option_reply(META, wire.REP_META_CONTEXT, b"ab"),
            option_reply(META, wire.REP_ACK),
            to=META,
        ),
        "2 bytes where 4 are due",
    ),
    "silence after an option": (answers(to=META), "it does not answer"),
    "silence after GO": (answers(to=GO), "it does not answer"),
    "nothing about the export": (goes(), "says nothing of the export"),
    "an export without flags": (goes(told(SIZE, 0)), "says nothing of the export"),
    "an info that is too short": (goes(told(SIZE)[:-1]), "11 bytes where 12 are due"),
    "an empty info, and one that nobody knows": (goes(b"", b"\0\x63abc"), "says nothing of the export"),
    "0 bytes": (goes(told(0)), "it is empty: it has 0 bytes"),
    "more bytes than there can be": (goes(told((1 << 64) - 1)), "18446744073709551615 bytes, which no disk has"),
    "a size that is no multiple": (goes(told(1000), blocks(512, 4096, 1 << 20)), "no multiple of its block size"),
    "blocks of 0 bytes": (goes(told(SIZE), blocks(0, 0, 0)), "makes no sense"),
    "blocks of 3 bytes": (goes(told(SIZE), blocks(3, 512, 4096)), "makes no sense"),
    "enormous blocks": (goes(told(SIZE), blocks(1 << 31, 1 << 31, 1 << 31)), "makes no sense"),
    "a largest block below the smallest": (goes(told(SIZE), blocks(4096, 4096, 512)), "makes no sense"),
    "requests of single bytes": (goes(told(SIZE), blocks(1, 1, 1)), "requests of 1 bytes at most"),
    "it is told otherwise": (
        answers(option_reply(GO, wire.REP_ERROR + 99, b"no \x1b[31mway\n"), to=GO),
        "no \\?\\[31mway$",
    ),
    "it is told nothing": (answers(option_reply(GO, wire.REP_ERROR + 99), to=GO), "it refuses with error 99"),
    "it is told all day": (answers(option_reply(GO, wire.REP_ERROR + 99, b"no " * 1300), to=GO), "(no ?){60,67}$"),
    "TLS": (answers(option_reply(GO, wire.REP_ERROR + 5), to=GO), "it wants TLS, which is not supported"),
    "no such export": (answers(option_reply(GO, wire.REP_ERR_UNKNOWN, b"x"), to=GO), "it has no such export"),
    "no GO": (answers(option_reply(GO, wire.REP_ERR_UNSUP), to=GO), "it is too old"),
    "it shuts down": (answers(option_reply(GO, wire.REP_ERROR + 7), to=GO), "it is shutting down"),
}


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_handshake_that_goes_wrong(tmp_path: Path, name: str) -> None:
    speak, message = HANDSHAKES[name]

    async def test(address: NbdAddress) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(SourceError, match=message) as caught:
                await NbdDevice.connect(address, name="it")
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()
        assert str(caught.value).startswith(("cannot use it: ", "it is empty"))
        assert str(caught.value).isprintable()

    run(tmp_path, speak, test)


def test_nobody_listens_and_nobody_ever_did(tmp_path: Path) -> None:
    async def test(address: NbdAddress, reason: str) -> None:
        with pytest.raises(SourceError, match=f"^cannot use it: .*{reason}"):
            await NbdDevice.connect(address, name="it")

    virtual_time.run(test(NbdAddress("", socket=str(tmp_path / "nothing")), "No such file"))
    virtual_time.run(test(NbdAddress("", socket=str(tmp_path)), "Connection refused"))
    virtual_time.run(test(NbdAddress("", socket="x" * 200), "path too long"))
    asyncio.run(test(NbdAddress("", host="a" * 70), "is no host name"))
    asyncio.run(test(NbdAddress("", host="a..b"), "is no host name"))
    asyncio.run(test(NbdAddress("", host="nbd.invalid"), "(not known|name resolution)"))


# -- one answer to one request --

Answer = Callable[[Asked], bytes]


def serves(answer: Answer, leave: bool = False, **export: Any) -> Speaking:
    """Answers the first request so, and then only listens."""

    async def speak(line: Line) -> None:
        await line.negotiate(Export(**export))
        line.send(answer(await line.request()))
        if not leave:
            await line.until_gone()

    return speak


def ranged(kind: int, payload: bytes, **options: Any) -> Answer:
    return lambda asked: chunk(asked.cookie, kind, payload, True, **options)


LOST_READS: dict[str, tuple[Answer, str]] = {
    "no magic": (lambda _: bytes(40), "sends no reply"),
    "a request's magic": (lambda _: struct.pack(">I", wire.REQUEST_MAGIC) + bytes(40), "sends no reply"),
    "another cookie": (lambda one: data(one.cookie + 1, 0, DISK[: one.length], True), "a request that was not made"),
    "cookie 0": (lambda _: done(0), "a request that was not made"),
    "a simple reply to another": (lambda one: simple(one.cookie + 1), "a request that was not made"),
    "a simple reply": (lambda one: simple(one.cookie, 0, DISK[: one.length]), "a simple reply where a structured"),
    "a simple error": (lambda one: simple(one.cookie, wire.NBD_EIO), "a simple reply where a structured"),
    "nothing, but done": (lambda one: done(one.cookie), "less than was asked for"),
    "the first half": (lambda one: data(one.cookie, 0, DISK[: one.length // 2], True), "less than was asked for"),
    "the second half": (
        lambda one: data(one.cookie, one.length // 2, DISK[one.length // 2 : one.length], True),
        "less, or more",
    ),
    "a byte is missing": (
        lambda one: data(one.cookie, 0, DISK[:100]) + data(one.cookie, 101, DISK[101 : one.length], True),
        "less, or more",
    ),
    "a byte comes twice": (
        lambda one: data(one.cookie, 0, DISK[:101]) + data(one.cookie, 100, DISK[100 : one.length], True),
        "less, or more",
    ),
    "everything comes twice": (
        lambda one: data(one.cookie, 0, DISK[: one.length]) + data(one.cookie, 0, DISK[: one.length], True),
        "less, or more",
    ),
    "a hole over data": (
        lambda one: data(one.cookie, 0, DISK[: one.length]) + hole(one.cookie, 10, 10, True),
        "less, or more",
    ),
    "a byte too many": (lambda one: data(one.cookie, 0, DISK[: one.length + 1], True), "was not asked for"),
    "behind the range": (lambda one: data(one.cookie, one.length, b"x", True), "was not asked for"),
    "far behind the range": (lambda one: data(one.cookie, (1 << 64) - 1, b"x", True), "was not asked for"),
    "a hole too long": (lambda one: hole(one.cookie, 0, 0xFFFFFFFF, True), "was not asked for"),
    "an empty hole": (lambda one: hole(one.cookie, 0, 0, True), "was not asked for"),
    "no data at an offset": (lambda one: data(one.cookie, 0, b"", True), "was not asked for"),
    "data shorter than its offset": (ranged(1, bytes(8), length=7), "was not asked for"),
    "data without a length": (ranged(1, bytes(8), length=0), "was not asked for"),
    "a chunk of 4 GiB": (ranged(1, bytes(8), length=0xFFFFFFFF), "a chunk of 4294967295 bytes"),
    "a hole of 4 GiB": (ranged(2, bytes(8), length=0xFFFFFFFF), "a chunk of 4294967295 bytes"),
    "an error of 32 MiB": (ranged(wire.CHUNK_ERROR, bytes(8), length=1 << 25), "a chunk of 33554432 bytes"),
    "a hole of the wrong length": (ranged(2, bytes(11)), "11 bytes where 12 are due"),
    "a hole that is nothing": (ranged(2, b""), "without its content"),
    "an end with content": (ranged(0, b"x"), "an empty chunk that is not empty"),
    "an unknown kind": (ranged(77, b"x"), "an unknown kind"),
    "an unknown kind of nothing": (ranged(77, b""), "without its content"),
    "a block status": (lambda one: status(one.cookie, [(one.length, 0)]), "an unknown kind"),
    "an error of the wrong length": (ranged(wire.CHUNK_ERROR, bytes(5)), "5 bytes where 6 are due"),
    "an error that is none": (lambda one: error(one.cookie, 0), "makes no sense"),
    "an error with a message too long": (
        ranged(wire.CHUNK_ERROR, struct.pack(">IH", 5, 9) + b"short"),
        "makes no sense",
    ),
    "too many pieces": (
        lambda one: b"".join(data(one.cookie, 2 * at, b"x") for at in range(5000)) + done(one.cookie),
        "too many pieces",
    ),
    "it shuts down": (lambda one: error(one.cookie, wire.NBD_ESHUTDOWN, b"bye"), "is shutting down"),
}


@pytest.mark.parametrize("name", LOST_READS)
def test_a_read_that_ends_the_connection(tmp_path: Path, name: str) -> None:
    answer, message = LOST_READS[name]

    async def test(device: NbdDevice) -> None:
        for length in (100_000, 100_000, 1):
            tracemalloc.start()
            try:
                with pytest.raises(SourceError, match=f"^it: the NBD server .*{message}"):
                    await device.pread(0, length)
                assert tracemalloc.get_traced_memory()[1] < 4 << 20
            finally:
                tracemalloc.stop()
        with pytest.raises(SourceError, match=message):
            await device.extents(0, SIZE)

    run_on_device(tmp_path, serves(answer), test)


BAD_READS: dict[str, tuple[Answer, int, str]] = {
    "an error": (lambda one: error(one.cookie), errno.EIO, "Input/output error"),
    "an error with words": (lambda one: error(one.cookie, 5, b"bad \x1b sector"), errno.EIO, "bad \\? sector"),
    "an error in two chunks": (lambda one: error(one.cookie, last=False) + done(one.cookie), errno.EIO, "Input/output"),
    "an errno that nobody knows": (lambda one: error(one.cookie, 4711), errno.EIO, "Input/output error"),
    "an error after all data": (
        lambda one: data(one.cookie, 0, DISK[: one.length]) + error(one.cookie),
        errno.EIO,
        "Input/output",
    ),
    "data after an error": (
        lambda one: error(one.cookie, last=False) + data(one.cookie, 0, DISK[: one.length], True),
        errno.EIO,
        "Input/output",
    ),
    "several errors": (
        lambda one: error(one.cookie, 5, b"first", False) + error(one.cookie, 12, b"second"),
        errno.EIO,
        "first",
    ),
    "an error with an offset": (
        lambda one: chunk(one.cookie, wire.CHUNK_ERROR_OFFSET, struct.pack(">IHQ", 5, 0, 3), True),
        errno.EIO,
        "Input/output",
    ),
    "an error of a kind to come": (
        lambda one: chunk(one.cookie, wire.CHUNK_ERROR_BIT + 99, struct.pack(">IH", 1, 3) + b"no!more", True),
        errno.EPERM,
        "no!$",
    ),
}


@pytest.mark.parametrize("name", BAD_READS)
def test_a_read_that_fails_leaves_the_connection_in_use(tmp_path: Path, name: str) -> None:
    answer, number, message = BAD_READS[name]

    async def speak(line: Line) -> None:
        await line.negotiate(Export())
        line.send(answer(await line.request()))
        asked = await line.request()
        line.send(data(asked.cookie, asked.offset, DISK[asked.offset : asked.end], True))
        await line.until_gone()

    async def test(device: NbdDevice) -> None:
        with pytest.raises(OSError, match=message) as caught:
            await device.pread(0, 5000)
        assert caught.value.errno == number
        assert await device.pread(1, 5000) == DISK[1:5001]

    run_on_device(tmp_path, speak, test)


@pytest.mark.parametrize("structured", [True, False])
def test_death_at_every_byte_of_a_reply(tmp_path: Path, structured: bool) -> None:
    def whole(asked: Asked) -> bytes:
        if not structured:
            return simple(asked.cookie, 0, DISK[:30])
        return hole(asked.cookie, 0, 10) + data(asked.cookie, 10, DISK[10:30], True)

    length = len(whole(Asked(0, 0, 0, 0, 0)))

    async def test(address: NbdAddress) -> None:
        for _ in range(length):
            device = await NbdDevice.connect(address, name="it")
            with pytest.raises(SourceError, match="the NBD server ended the connection"):
                await device.pread(0, 30)
            await device.close()

    async def speak(line: Line) -> None:
        await line.negotiate(Export(structured=structured))
        line.send(whole(await line.request())[: line.number])

    run(tmp_path, speak, test)


def test_death_between_requests_is_told_by_the_next(tmp_path: Path) -> None:
    async def test(device: NbdDevice) -> None:
        assert await device.pread(0, 100) == DISK[:100]
        for _ in range(3):
            with pytest.raises(SourceError, match="ended the connection"):
                await device.pread(0, 100)

    run_on_device(tmp_path, serves(lambda one: data(one.cookie, 0, DISK[:100], True), leave=True), test)


@pytest.mark.parametrize("wait", ["pread", "extents", "pwrite", "flush"])
def test_silence_can_be_cancelled(tmp_path: Path, wait: str) -> None:
    async def speak(line: Line) -> None:
        await line.negotiate(Export())
        await line.until_gone()

    async def test(address: NbdAddress) -> None:
        device = await NbdDevice.connect(address, writable=True)
        calls: dict[str, Awaitable[Any]] = {
            "pread": device.pread(0, SIZE),
            "extents": device.extents(0, SIZE),
            "pwrite": device.pwrite(0, DISK),
            "flush": device.flush(),
        }
        task = asyncio.ensure_future(calls.pop(wait))
        for other in calls.values():
            other.close()  # type: ignore[attr-defined]
        before = asyncio.get_running_loop().time()
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await device.close()
        assert asyncio.get_running_loop().time() - before <= 1

    run(tmp_path, speak, test)


def test_a_server_that_reads_nothing_holds_nobody_up(tmp_path: Path) -> None:
    """More is written than its socket takes; cancelling and closing end all the same."""

    async def speak(line: Line) -> None:
        await line.negotiate(Export(size=1 << 30))
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await gone.wait()

    async def test(address: NbdAddress) -> None:
        device = await NbdDevice.connect(address, writable=True)
        tasks = [asyncio.ensure_future(device.pwrite(0, bytes(8 << 20))) for _ in range(3)]
        for _ in range(50):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*tasks, return_exceptions=True)
        )
        await device.close()
        gone.set()

    gone = asyncio.Event()
    run(tmp_path, speak, test)


# -- many requests at once --


def test_chunks_of_several_requests_in_any_order(tmp_path: Path) -> None:
    async def speak(line: Line) -> None:
        await line.negotiate(Export(size=3 << 20))
        asked = await line.requests(3)
        for at in (2, 0, 1):
            for one in reversed(asked):
                start, end = one.offset + at * one.length // 3, one.offset + (at + 1) * one.length // 3
                if at == 1:
                    line.send(hole(one.cookie, start, end - start))
                else:
                    line.send(data(one.cookie, start, disk[start:end]))
        for one in asked:
            line.send(done(one.cookie))
        await line.until_gone()

    disk = pattern(3 << 20)

    async def test(device: NbdDevice) -> None:
        ranges = [(0, 30_000), (100_000, 9), (1 << 20, 90_000)]
        for (offset, length), found in zip(
            ranges, await asyncio.gather(*(device.pread(*one) for one in ranges)), strict=True
        ):
            third = length // 3
            expected = disk[offset : offset + third] + bytes(third) + disk[offset + 2 * third : offset + length]
            assert found == expected

    run_on_device(tmp_path, speak, test)


def test_one_lie_fails_all_that_are_in_flight(tmp_path: Path) -> None:
    async def speak(line: Line) -> None:
        await line.negotiate(Export())
        asked = await line.requests(10)
        line.send(data(asked[4].cookie, asked[4].offset, DISK[asked[4].offset : asked[4].end], True))
        line.send(done(asked[5].cookie))
        await line.until_gone()

    async def test(device: NbdDevice) -> None:
        found = await asyncio.gather(*(device.pread(at * 1000, 1000) for at in range(10)), return_exceptions=True)
        assert found[4] == DISK[4000:5000]
        lost = [one for one in found if isinstance(one, SourceError)]
        assert len(lost) == 9 and all("less than was asked for" in str(one) for one in lost)

    run_on_device(tmp_path, speak, test)


def test_one_connection_of_several_dies(tmp_path: Path) -> None:
    async def speak(line: Line) -> None:
        await line.negotiate(Export(flags=ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN))
        while True:
            asked = await line.request()
            if line.number == 2:
                return
            line.send(data(asked.cookie, asked.offset, DISK[asked.offset : asked.end], True))

    async def test(device: NbdDevice) -> None:
        assert device.connections == 4
        found = await asyncio.gather(*(device.pread(0, 100) for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(one, SourceError) for one in found) == 2
        assert sum(one == DISK[:100] for one in found) == 6

    run_on_device(tmp_path, speak, test)


# -- further connections --


async def _refuse(line: Line) -> None:
    line.writer.transport.abort()  # type: ignore[attr-defined]


async def _hang(line: Line) -> None:
    await line.until_gone()


async def _another_size(line: Line) -> None:
    await line.negotiate(Export(size=SIZE * 2, flags=ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN))
    await line.until_gone()


async def _other_blocks(line: Line) -> None:
    await line.negotiate(Export(flags=ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN, blocks=(4096, 4096, 4096)))
    await line.until_gone()


async def _no_status(line: Line) -> None:
    await line.negotiate(Export(flags=ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN, context=False))
    await line.until_gone()


@pytest.mark.parametrize("second", [_refuse, _hang, _another_size, _other_blocks, _no_status])
def test_a_second_connection_that_is_of_no_use_is_not_used(tmp_path: Path, second: Speaking) -> None:
    first = PlainDisk(DISK, Export(flags=ALL_FLAGS | wire.FLAG_CAN_MULTI_CONN))

    async def speak(line: Line) -> None:
        await (second if line.number else first)(line)

    async def test(device: NbdDevice) -> None:
        assert device.connections == 1
        assert await device.pread(0, SIZE) == DISK

    run_on_device(tmp_path, speak, test)


# -- block status --

ALL = 3 * 65_536
STATUSES: dict[str, tuple[Answer, list[tuple[int, bool, bool]]]] = {
    "all of it": (lambda one: status(one.cookie, [(ALL, 3)]), [(ALL, True, True)]),
    "a hole need not be zero": (lambda one: status(one.cookie, [(ALL, 1)]), [(ALL, False, True)]),
    "zeros need not be a hole": (lambda one: status(one.cookie, [(ALL, 2)]), [(ALL, True, False)]),
    "flags to come": (lambda one: status(one.cookie, [(ALL, 0xFFFFFFFC)]), [(ALL, False, False)]),
    "less than asked": (lambda one: status(one.cookie, [(7, 0)]), [(7, False, False)]),
    "past the end": (
        lambda one: status(one.cookie, [(7, 0), (0xFFFFFFFF, 3)]),
        [(7, False, False), (ALL - 7, True, True)],
    ),
    "extents behind the end": (
        lambda one: status(one.cookie, [(ALL, 0), (9, 3), (0xFFFFFFFF, 3)]),
        [(ALL, False, False)],
    ),
    "equal neighbours": (
        lambda one: status(one.cookie, [(5, 3), (6, 3), (7, 2), (8, 0), (9, 0)]),
        [(11, True, True), (7, True, False), (17, False, False)],
    ),
    "another context beside it": (
        lambda one: status(one.cookie, [(ALL, 3)], CONTEXT + 1, False) + status(one.cookie, [(ALL, 0)]),
        [(ALL, False, False)],
    ),
    "done in a chunk of its own": (
        lambda one: status(one.cookie, [(ALL, 0)], last=False) + done(one.cookie),
        [(ALL, False, False)],
    ),
}


@pytest.mark.parametrize("name", STATUSES)
def test_what_a_block_status_may_say(tmp_path: Path, name: str) -> None:
    answer, expected = STATUSES[name]

    async def test(device: NbdDevice) -> None:
        found = await device.extents(0, ALL)
        assert [(one.length, one.zero, one.hole) for one in found] == expected
        assert [one.offset for one in found] == [sum(one[0] for one in expected[:at]) for at in range(len(expected))]

    run_on_device(tmp_path, serves(answer, size=ALL), test)


def test_a_million_extents_are_not_all_taken(tmp_path: Path) -> None:
    async def test(device: NbdDevice) -> None:
        tracemalloc.start()
        found = await device.extents(0, 1 << 30)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 1000 < len(found) < 1 << 20 and not found[0].zero and found[1].zero
        assert peak < 64 << 20

    # Made before memory is counted: cookies begin with 1.
    reply = status(1, [(512, 0), (512, 3)] * (1 << 19))
    run_on_device(tmp_path, serves(lambda _: reply, size=1 << 30), test)


BAD_STATUSES: dict[str, tuple[Answer, type[Exception], str]] = {
    "no chunk": (lambda one: done(one.cookie), OSError, "tells no block status"),
    "only another context": (
        lambda one: status(one.cookie, [(ALL, 3)], CONTEXT + 1),
        OSError,
        "tells no block status",
    ),
    "an error": (lambda one: error(one.cookie), OSError, "Input/output error"),
    "no extents": (lambda one: status(one.cookie, []), SourceError, "a block status of the wrong length"),
    "an extent and a half": (
        lambda one: chunk(one.cookie, wire.CHUNK_BLOCK_STATUS, bytes(16), True),
        SourceError,
        "a block status of the wrong length",
    ),
    "no context": (lambda one: chunk(one.cookie, wire.CHUNK_BLOCK_STATUS, b"ab", True), SourceError, "wrong length"),
    "an empty extent": (lambda one: status(one.cookie, [(7, 0), (0, 3)]), SourceError, "an empty extent"),
    "the same twice": (
        lambda one: status(one.cookie, [(7, 0)], last=False) + status(one.cookie, [(7, 0)]),
        SourceError,
        "a block status twice",
    ),
    "data": (lambda one: data(one.cookie, 0, b"abc", True), SourceError, "was not asked for"),
    "a hole": (lambda one: hole(one.cookie, 0, 10, True), SourceError, "was not asked for"),
    "too long": (
        lambda one: chunk(one.cookie, wire.CHUNK_BLOCK_STATUS, b"", True, length=1 << 25),
        SourceError,
        "a chunk of 33554432 bytes",
    ),
    "a simple reply": (lambda one: simple(one.cookie), SourceError, "a simple reply where a structured"),
}


@pytest.mark.parametrize("name", BAD_STATUSES)
def test_what_a_block_status_may_not_say(tmp_path: Path, name: str) -> None:
    answer, failure, message = BAD_STATUSES[name]

    async def test(device: NbdDevice) -> None:
        with pytest.raises(failure, match=message):
            await device.extents(0, ALL)

    run_on_device(tmp_path, serves(answer, size=ALL), test)


# -- writes --

BAD_WRITES: dict[str, tuple[Answer, type[Exception], str]] = {
    "no room": (lambda one: simple(one.cookie, wire.NBD_ENOSPC), OSError, "No space left"),
    "no room, in a chunk": (lambda one: error(one.cookie, wire.NBD_ENOSPC), OSError, "No space left"),
    "read-only": (lambda one: simple(one.cookie, wire.NBD_EPERM), OSError, "not permitted"),
    "data": (lambda one: data(one.cookie, 0, b"abc", True), SourceError, "was not asked for"),
    "a block status": (lambda one: status(one.cookie, [(7, 0)]), SourceError, "an unknown kind"),
    "it shuts down": (lambda one: simple(one.cookie, wire.NBD_ESHUTDOWN), SourceError, "is shutting down"),
    "another cookie": (lambda one: simple(one.cookie + 7), SourceError, "a request that was not made"),
}


@pytest.mark.parametrize("name", BAD_WRITES)
@pytest.mark.parametrize("change", ["pwrite", "write_zeroes", "discard", "flush"])
def test_a_change_that_fails(tmp_path: Path, name: str, change: str) -> None:
    answer, failure, message = BAD_WRITES[name]

    async def test(address: NbdAddress) -> None:
        device = await NbdDevice.connect(address, writable=True)
        calls: dict[str, Callable[[], Awaitable[None]]] = {
            "pwrite": lambda: device.pwrite(0, DISK[:9000]),
            "write_zeroes": lambda: device.write_zeroes(0, 9000),
            "discard": lambda: device.discard(0, 9000),
            "flush": device.flush,
        }
        with pytest.raises(failure, match=message):
            await calls[change]()
        await device.close()

    run(tmp_path, serves(answer), test)


def test_the_last_of_many_writes_that_fails_is_told(tmp_path: Path) -> None:
    async def speak(line: Line) -> None:
        await line.negotiate(Export(size=1 << 23))
        asked = [await line.request()]
        while asked[-1].end < 1 << 23:
            asked.append(await line.request())
        for one in asked[:-1]:
            line.send(simple(one.cookie))
        line.send(simple(asked[-1].cookie, wire.NBD_EIO))
        await line.until_gone()

    async def test(address: NbdAddress) -> None:
        device = await NbdDevice.connect(address, writable=True)
        with pytest.raises(OSError, match="Input/output error"):
            await device.pwrite(0, bytes(1 << 23))
        await device.close()

    run(tmp_path, speak, test)


def test_a_write_has_ended_only_when_all_its_pieces_have(tmp_path: Path) -> None:
    """Else one of them could still overtake the next write of the same place."""
    answered = asyncio.Event()

    async def speak(line: Line) -> None:
        await line.negotiate(Export(size=1 << 23))
        asked = [await line.request()]
        while asked[-1].end < 1 << 23:
            asked.append(await line.request())
        line.send(simple(asked[0].cookie, wire.NBD_ENOSPC))
        await answered.wait()
        line.send(*(simple(one.cookie) for one in asked[1:]))
        await line.until_gone()

    async def test(address: NbdAddress) -> None:
        device = await NbdDevice.connect(address, writable=True)
        writing = asyncio.ensure_future(device.pwrite(0, bytes(1 << 23)))
        await asyncio.sleep(5)  # of virtual time: all that can happen has happened
        assert not writing.done()
        answered.set()
        with pytest.raises(OSError, match="No space left"):
            await writing
        await device.close()

    run(tmp_path, speak, test)
