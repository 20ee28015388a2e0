from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from pybackup.core.system import inline_writes
from pybackup.core.system.inline_writes import MOST, SKIPPED, SLOW, InlineWrites

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "disk.img", os.O_RDWR | os.O_CREAT)
    os.truncate(descriptor, 1 << 20)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(autouse=True)
def _like_ext4(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that knows RWF_NOWAIT for reads only, and has every page in the cache but those from 512 KiB."""

    def pwritev(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def preadv(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        if offset >= 1 << 19:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return len(buffers[0])

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "preadv", preadv)


def ticking(step: float) -> Callable[[], float]:
    """A clock on which every write takes ``step`` seconds."""
    ticks = count()
    return lambda: next(ticks) * step


def test_small_writes_are_made_at_once(fd: int) -> None:
    writes = InlineWrites(fd, ticking(0))
    assert writes.write(10, b"x" * MOST)
    assert os.pread(fd, MOST + 2, 9) == b"\0" + b"x" * MOST + b"\0"
    assert not writes.write(0, bytes(MOST + 1))


@pytest.mark.parametrize(
    "offset, length, made", [(1 << 19, PAGE, True), ((1 << 19) + 1, PAGE, False), (PAGE, 2 * PAGE, True), (1, 1, True)]
)
def test_a_page_that_would_have_to_be_read_goes_to_a_thread(fd: int, offset: int, length: int, made: bool) -> None:
    assert InlineWrites(fd, ticking(0)).write(offset, b"x" * length) is made
    assert os.pread(fd, 1, offset) == (b"x" if made else b"\0")


def test_after_a_slow_write_the_next_go_to_threads(fd: int) -> None:
    writes = InlineWrites(fd, ticking(2 * SLOW))
    assert writes.write(0, b"x")
    assert not any(writes.write(0, b"x") for _ in range(SKIPPED))
    assert writes.write(0, b"x")


def test_a_quick_write_changes_nothing(fd: int) -> None:
    writes = InlineWrites(fd, ticking(SLOW / 2))
    assert all(writes.write(0, b"x") for _ in range(10))


def test_nothing_is_written_while_paused_or_stopped(fd: int) -> None:
    writes = InlineWrites(fd, ticking(0))
    with writes.paused(), writes.paused():
        assert not writes.write(0, b"x")
    assert writes.write(0, b"x")
    writes.stop()
    assert not writes.write(0, b"x")


def test_a_remote_filesystem_is_left_to_threads(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", os.pwritev)
    assert not InlineWrites(fd, ticking(0)).write(0, b"x" * PAGE)
    assert os.pread(fd, 1, 0) == b"\0"


def test_a_file_in_memory_needs_no_promise(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", os.pwritev)
    monkeypatch.setattr(inline_writes, "lies_in_memory", lambda _: True)
    assert InlineWrites(fd, ticking(0)).write((1 << 19) + 1, b"x" * PAGE)
    assert os.pread(fd, 1, (1 << 19) + 1) == b"x"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int | OSError]:
    """What a kernel that knows RWF_NOWAIT for writes answers: bytes taken, or an error. Taken from the front."""
    answers: list[int | OSError] = []

    def pwritev(fd: int, buffers: list[bytes], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return os.pwrite(fd, buffers[0][:answer], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    return answers


WAIT = BlockingIOError(errno.EAGAIN, "wait")


def test_a_kernel_that_promises_is_believed(fd: int, answers: list[int | OSError]) -> None:
    answers += [3, OSError(errno.ENOSPC, "full")]
    writes = InlineWrites(fd, ticking(0))
    assert writes.write(5, b"abcdef")
    assert os.pread(fd, 8, 4) == b"\0abcdef\0"
    with pytest.raises(OSError, match="full"):
        writes.write(5, b"other")


def test_a_kernel_that_would_wait_is_tried_as_one_that_never_promises(fd: int, answers: list[int | OSError]) -> None:
    answers += [WAIT, WAIT]
    writes = InlineWrites(fd, ticking(0))
    assert writes.write(0, b"x" * PAGE)
    assert os.pread(fd, 1, PAGE - 1) == b"x"
    assert not writes.write((1 << 19) + 1, b"y")
    assert os.pread(fd, 1, (1 << 19) + 1) == b"\0"


def test_after_a_slow_write_a_promise_still_counts(fd: int, answers: list[int | OSError]) -> None:
    answers += [WAIT, WAIT, PAGE, WAIT]
    writes = InlineWrites(fd, ticking(2 * SLOW))
    assert [writes.write(0, b"x" * PAGE) for _ in range(4)] == [True, False, True, False]
    assert not answers
