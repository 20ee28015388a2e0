from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_contract import pattern
from hypothesis import given
from hypothesis import strategies as st

from pybackup.core.devices.raw import RawDevice
from pybackup.core.system.direct_read import SLOW, SMALLEST, DirectReads
from pybackup.core.system.page_cache import cached_pages
from pybackup.core.system.unfilled import ALIGNMENT, unfilled, unfilled_aligned

SIZE = 1 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(SIZE))
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    yield fd
    os.close(fd)


@pytest.fixture
def reads(fd: int) -> Iterator[DirectReads]:
    reads = DirectReads(fd)
    works = reads.read(0, SMALLEST) is not None
    reads.close()
    if not works:
        pytest.skip("the filesystem of the tests has no direct reads")
    reads = DirectReads(fd)
    yield reads
    reads.close()


@given(st.integers(2 * ALIGNMENT, 5 << 20))
def test_memory_that_direct_reads_can_fill(length: int) -> None:
    memory = unfilled_aligned(length)
    assert len(memory) == length
    assert ctypes.addressof(ctypes.c_char.from_buffer(memory)) % ALIGNMENT == 0
    memory[:] = bytes(length)
    assert memory == bytes(length)


@given(st.integers(0, 1 << 20))
def test_memory_that_is_not_filled(length: int) -> None:
    memory = unfilled(length)
    memory[:] = b"x" * length
    assert memory == b"x" * length


def test_what_is_read(reads: DirectReads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0)  # the disk is fast, however busy this machine is
    for offset, length in ((0, SIZE), (ALIGNMENT, 5 * ALIGNMENT), (SIZE - SMALLEST, SMALLEST)):
        assert reads.read(offset, length) == pattern(SIZE)[offset : offset + length]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (512, 65536), (0, 65535), (0, 1), (0, 4096), (SIZE - 4096, 65536)]
)
def test_what_is_left_to_ordinary_reads(reads: DirectReads, offset: int, length: int) -> None:
    assert reads.read(offset, length) is None


def test_what_was_just_written_is_read(fd: int, reads: DirectReads) -> None:
    os.pwrite(fd, b"new" * 2000, 5000)
    assert reads.read(0, SMALLEST) == os.pread(fd, SMALLEST, 0)


def test_without_direct_reads(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        reads = DirectReads(fd)
    assert reads.read(0, SMALLEST) is None
    reads.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_direct_read_that_fails_is_left_to_an_ordinary_one(
    reads: DirectReads, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", fail)
    assert reads.read(0, SMALLEST) is None


def test_a_slow_disk_is_not_asked_for_what_is_cached(
    fd: int, reads: DirectReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 10 * SIZE / SLOW)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    os.pread(fd, SIZE, 0)
    assert reads.read(0, SIZE) is not None  # nothing is known of this disk yet
    assert reads.read(0, SIZE) is None
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if 0 not in cached_pages(fd, 0, SIZE):
        pytest.skip("this filesystem keeps all its pages, or does not tell")
    assert reads.read(0, SIZE) == pattern(SIZE)


def test_a_fast_disk_is_asked_for_what_is_cached(fd: int, reads: DirectReads, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, SIZE / SLOW / 2)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    os.pread(fd, SIZE, 0)
    for _ in range(3):
        assert reads.read(0, SIZE) == pattern(SIZE)


def test_an_unused_device_leaves_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(SIZE))
    before = os.listdir("/proc/self/fd")
    RawDevice.open(path, drop_cache=True).close_unused()
    assert os.listdir("/proc/self/fd") == before
