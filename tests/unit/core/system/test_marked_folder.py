"""Nothing is removed but what is provably ours, and was left by a process that has ended."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pybackup.core.system.marked_folder import MARK, MarkedFolder, remove_stale

PREFIXES = ("nbd", "image-")


def left(path: Path) -> MarkedFolder:
    """A folder with an image and a socket, as a killed process leaves it."""
    folder = MarkedFolder(str(path), PREFIXES)
    Path(folder.inside("image-1")).write_bytes(b"old data")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(folder.inside("nbd"))
    os.close(folder._mark)
    folder._mark = -1
    return folder


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left(tmp_path / "x")
    assert remove_stale(str(tmp_path / "x"), PREFIXES)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_and_its_owner_removes_it(tmp_path: Path) -> None:
    folder = MarkedFolder(str(tmp_path / "x"), PREFIXES)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o700
    assert not remove_stale(folder.path, PREFIXES)
    folder.remove()
    folder.remove()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError):
        MarkedFolder(str(tmp_path), PREFIXES)
    assert tmp_path.exists()


def _foreign_file(path: Path) -> None:
    (path / "monday.vma.zst").write_bytes(b"precious")


def _foreign_folder(path: Path) -> None:
    (path / "image-2").mkdir()


def _link(path: Path) -> None:
    (path / "image-2").symlink_to("/etc/passwd")


def _no_mark(path: Path) -> None:
    (path / MARK).unlink()


def _other_mark(path: Path) -> None:
    (path / MARK).write_bytes(b"something else")


def _longer_mark(path: Path) -> None:
    with (path / MARK).open("ab") as file:
        file.write(b"!")


def _linked_mark(path: Path) -> None:
    os.link(path / MARK, path.parent / "a second name")


def _fifo(path: Path) -> None:
    (path / MARK).unlink()
    os.mkfifo(path / MARK)


@pytest.mark.parametrize(
    "change", [_foreign_file, _foreign_folder, _link, _no_mark, _other_mark, _longer_mark, _linked_mark, _fifo]
)
def test_what_is_not_provably_ours_is_left_as_it_is(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "x"
    left(path)
    change(path)
    before = sorted(one.name for one in path.iterdir())
    assert not remove_stale(str(path), PREFIXES)
    assert sorted(one.name for one in path.iterdir()) == before
    assert (path / "image-1").read_bytes() == b"old data"


def test_what_is_no_folder_is_left(tmp_path: Path) -> None:
    left(tmp_path / "x")
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name in ("link", "file", "empty", "none"):
        assert not remove_stale(str(tmp_path / name), PREFIXES)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["empty", "file", "link", "x"]
    assert len(list((tmp_path / "x").iterdir())) == 3


def test_a_folder_with_foreign_files_is_left_by_its_owner_too(tmp_path: Path) -> None:
    folder = MarkedFolder(str(tmp_path / "x"), PREFIXES)
    _foreign_file(tmp_path / "x")
    folder.remove()
    assert (tmp_path / "x" / "monday.vma.zst").read_bytes() == b"precious"


def test_without_locks_nobody_takes_a_folder_for_a_stale_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refused)
        folder = MarkedFolder(str(tmp_path / "x"), PREFIXES)
    assert not remove_stale(folder.path, PREFIXES)
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="Input/output"):
        MarkedFolder(str(tmp_path / "x"), PREFIXES)
    assert list(tmp_path.iterdir()) == []
