from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybackup.core.errors import BusyError
from pybackup.core.system.image_lock import ImageLock


@pytest.fixture
def open_image(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """Open the same file again and again, as different programs would."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    opened: list[int] = []

    def open_once_more() -> int:
        opened.append(os.open(path, os.O_RDONLY))
        return opened[-1]

    yield open_once_more
    for fd in opened:
        os.close(fd)


def test_readers_share(open_image: Callable[[], int]) -> None:
    first, second = open_image(), open_image()
    with (
        ImageLock.for_reading(first, "a"),
        ImageLock.for_reading(second, "a"),
        pytest.raises(BusyError, match="a is in"),
    ):
        ImageLock.for_writing(open_image(), "a")


def test_a_writer_shares_with_nobody(open_image: Callable[[], int]) -> None:
    with ImageLock.for_writing(open_image(), "a"):
        for take in (ImageLock.for_reading, ImageLock.for_writing):
            with pytest.raises(BusyError):
                take(open_image(), "a")
    ImageLock.for_writing(open_image(), "a")


def test_release_and_close_give_it_back(open_image: Callable[[], int], tmp_path: Path) -> None:
    lock = ImageLock.for_writing(open_image(), "a")
    lock.release()
    lock.release()
    fd = os.open(tmp_path / "disk.img", os.O_RDONLY)
    forgotten = ImageLock.for_writing(fd, "a")
    os.close(fd)
    ImageLock.for_writing(open_image(), "a")
    forgotten.release()


def test_a_refused_reader_does_not_keep_others_out(open_image: Callable[[], int]) -> None:
    refused = open_image()
    with ImageLock.for_writing(open_image(), "a"), pytest.raises(BusyError):
        ImageLock.for_reading(refused, "a")
    ImageLock.for_writing(open_image(), "a")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_filesystem_without_locks_gives_a_note(
    open_image: Callable[[], int], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "fcntl", failing(code))
    assert ImageLock.for_reading(open_image(), "a").note == f"no image lock on a: {os.strerror(code)}"


def test_any_other_failure_is_told(open_image: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "fcntl", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        ImageLock.for_reading(open_image(), "a")


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail
