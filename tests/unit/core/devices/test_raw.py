from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from device_contract import DeviceContract, contents, described, pattern

from pybackup.core.device import BlockDevice
from pybackup.core.devices import raw
from pybackup.core.devices.raw import RawDevice
from pybackup.core.errors import SourceChangedError, SourceError, TargetError
from pybackup.core.system import fallocate, file_io
from pybackup.core.system.direct_read import DirectReads
from pybackup.core.system.page_cache import cached_pages


def on_raw(path: Path, action: Callable[[RawDevice], Awaitable[Any]], **options: Any) -> Any:
    """Open the file, do something with the device, close it."""

    async def test() -> Any:
        device = RawDevice.open(path, **options)
        try:
            return await action(device)
        finally:
            await device.close()

    return asyncio.run(test())


@pytest.fixture
def without_direct_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        return None

    monkeypatch.setattr(DirectReads, "read", none)


class TestRawContract(DeviceContract):
    options: dict[str, Any] = {}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "disk.img"

    async def make(self, contents: bytes) -> BlockDevice:
        self.path.write_bytes(contents)
        return RawDevice.open(self.path, writable=True, **self.options)

    async def make_read_only(self, contents: bytes) -> BlockDevice:
        self.path.write_bytes(contents)
        return RawDevice.open(self.path, **self.options)


class TestRawContractKeepingTheCacheClean(TestRawContract):
    options = {"drop_cache": True}  # noqa: RUF012


class TestRawContractWithoutDirectReads(TestRawContract):
    options = {"drop_cache": True}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _no_direct_reads(self, without_direct_reads: None) -> None:
        pass


class TestRawContractWithoutFallocate(TestRawContract):
    @pytest.fixture(autouse=True)
    def _no_fallocate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unsupported(fd: int, mode: int, offset: int, length: int) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(fallocate, "_fallocate", unsupported)


class TestRawContractWithShortTransfers(TestRawContract):
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(file_io, "CALL_BYTES", 7001)


class TestRawContractOnSharedMemory(TestRawContract):
    @pytest.fixture(autouse=True)
    def _folder(self) -> Iterator[None]:
        if not os.path.isdir("/dev/shm"):
            pytest.skip("no /dev/shm")
        self.path = Path(f"/dev/shm/pybackup-test-{os.getpid()}.img")
        yield
        self.path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "kind, words", [("folder", "it is a directory"), ("fifo", "it is a FIFO"), ("null", "it is a character device")]
)
def test_what_is_no_disk_is_named(tmp_path: Path, kind: str, words: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    path = {"folder": tmp_path, "fifo": tmp_path / "fifo", "null": Path("/dev/null")}[kind]
    with pytest.raises(SourceError, match=f"cannot open {path}: {words}"):
        RawDevice.open(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(SourceError, match=r"empty: it is empty \(0 bytes\)"):
        RawDevice.open(tmp_path / "empty")


def test_a_missing_file_is_refused_on_the_side_that_asked(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="none: No such file or directory"):
        RawDevice.open(tmp_path / "none")
    with pytest.raises(TargetError, match="none: No such file or directory"):
        RawDevice.open(tmp_path / "none", failure=TargetError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(mode=0)
    with pytest.raises(SourceError, match="Permission denied"):
        RawDevice.open(tmp_path / "secret")


def test_refused_files_leave_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    before = os.listdir("/proc/self/fd")
    for path in (tmp_path, tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(SourceError):
            RawDevice.open(path)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_shrinks_is_no_backup(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(100_000))

    async def test(device: RawDevice) -> None:
        os.truncate(path, 50_000)
        assert await device.pread(0, 50_000) == pattern(100_000)[:50_000]
        for offset in (49_999, 60_000):
            with pytest.raises(SourceChangedError, match=r"disk.img shrank while it was read: it had 100000 bytes"):
                await device.pread(offset, 100)
            assert device.read_now(offset, 100) is None
        with pytest.raises(SourceChangedError):
            await device.extents(60_000, 10)

    on_raw(path, test)


def test_a_file_that_grows_keeps_its_size_and_loses_its_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(1000))

    async def test(device: RawDevice) -> None:
        before = device.fingerprint()
        assert before == device.fingerprint()
        with path.open("ab") as file:
            file.write(b"more")
        assert device.size == 1000
        assert before != device.fingerprint()

    on_raw(path, test)


def test_nothing_is_written_behind_the_end(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(1000))

    async def test(device: RawDevice) -> None:
        with pytest.raises(OSError, match="the size is 1000"):
            await device.pwrite(999, b"xx")
        with pytest.raises(OSError, match="the size is 1000"):
            device.write_now(1000, b"x")

    on_raw(path, test, writable=True)
    assert path.read_bytes() == pattern(1000)


def test_holes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate((1 << 40) + 1)
        file.seek(1 << 30)
        file.write(b"x")

    async def test(device: RawDevice) -> list[tuple[int, int, bool]]:
        return [(extent.offset, extent.end, extent.zero) for extent in await device.extents(0, device.size)]

    kilobyte, end = 1024, (1 << 40) + 1
    found = on_raw(path, test)
    if len(found) == 1 and not found[0][2]:
        pytest.skip("this filesystem does not tell where holes are")
    assert found == [
        (0, 1 << 30, True),
        (1 << 30, (1 << 30) + 4 * kilobyte, False),
        ((1 << 30) + 4 * kilobyte, end, True),
    ]


def test_zeroes_give_the_space_back(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(1 << 20))

    async def test(device: RawDevice) -> None:
        await device.write_zeroes(0, 1 << 20)
        await device.flush()

    on_raw(path, test, writable=True)
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks == 0
    assert not any(path.read_bytes())


def test_a_cancelled_write_ends_before_its_cancellation_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    started, go_on = threading.Event(), threading.Event()
    real = file_io.write_fully

    def held_back(fd: int, offset: int, data: bytes) -> None:
        started.set()
        go_on.wait(30)
        real(fd, offset, data)

    monkeypatch.setattr("pybackup.core.devices.raw.write_fully", held_back)

    async def test(device: RawDevice) -> None:
        write = asyncio.ensure_future(device.pwrite(0, b"late"))
        await asyncio.to_thread(started.wait)
        write.cancel()
        await asyncio.sleep(0)
        write.cancel()
        await asyncio.sleep(0)
        assert not write.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await write
        assert await device.pread(0, 4) == b"late"

    on_raw(path, test, writable=True)


def test_a_shared_pool_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(1000))
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            assert on_raw(path, contents, executor=pool) == pattern(1000)


def test_a_closed_device_answers_ebadf(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(1000))

    async def test() -> None:
        with ThreadPoolExecutor(1) as pool:
            device = RawDevice.open(path, writable=True, executor=pool)
            await device.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                await device.pread(0, 1)
            assert device.read_now(0, 1) is None
            assert not device.write_now(0, b"x")

    asyncio.run(test())


@pytest.mark.parametrize("in_memory", [True, False])
def test_without_nowait_only_a_file_in_memory_is_read_at_once(
    tmp_path: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(1000))
    preadv = os.preadv

    def like_tmpfs(fd: int, buffers: list[Any], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return preadv(fd, buffers, offset)

    async def test(device: RawDevice) -> None:
        assert device.read_now(10, 20) is None  # here it learns
        assert device.read_now(10, 20) == (pattern(1000)[10:30] if in_memory else None)
        assert await device.pread(10, 20) == pattern(1000)[10:30]

    monkeypatch.setattr(os, "preadv", like_tmpfs)
    monkeypatch.setattr(raw, "lies_in_memory", lambda _: in_memory)
    on_raw(path, test)


@pytest.mark.parametrize("direct", [True, False])
def test_pages_stay_in_the_cache_or_out_of_it(tmp_path: Path, direct: bool, request: pytest.FixtureRequest) -> None:
    if not direct:
        request.getfixturevalue("without_direct_reads")
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(1 << 20))
    page = os.sysconf("SC_PAGESIZE")

    async def test(device: RawDevice) -> tuple[bytes, bytes]:
        os.fsync(device.fileno())
        os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(device.fileno(), 10 * page, 100 * page)
        before = cached_pages(device.fileno(), 0, 1 << 20)
        assert await described(device) == pattern(1 << 20)
        return before, cached_pages(device.fileno(), 0, 1 << 20)

    before, after = on_raw(path, test, drop_cache=True)
    if 0 not in before:
        pytest.skip("this filesystem keeps all its pages, or does not tell")
    assert b"\1" * 10 in before
    assert b"\1" * 10 in after
    # The kernel need not drop a page at once: one that another CPU has just touched may stay for a while.
    assert after.count(1) - before.count(1) <= 32
