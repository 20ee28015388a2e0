"""Folders for sockets: made and removed, left by the dead and swept, and never anybody else's."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pybackup.core.system import private_folder as module
from pybackup.core.system.private_folder import private_folder

KILLED = """
import os, signal, socket, sys
from pybackup.core.system.private_folder import private_folder
with private_folder(sys.argv[1]) as folder:
    socket.socket(socket.AF_UNIX).bind(os.path.join(folder, "nbd.sock"))
    os.symlink("/nowhere", os.path.join(folder, "disk.vmdk"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What somebody left who was killed."""
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    return left


def test_it_is_ours_alone_and_goes(tmp_path: Path) -> None:
    with private_folder(str(tmp_path)) as folder:
        assert Path(folder).parent == tmp_path
        assert os.stat(folder).st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(os.path.join(folder, "nbd.sock"))
    assert list(tmp_path.iterdir()) == []


def test_what_the_dead_have_left_is_removed(tmp_path: Path, left: Path) -> None:
    with private_folder(str(tmp_path)) as folder:
        assert list(tmp_path.iterdir()) == [Path(folder)]


def test_what_somebody_uses_stays(tmp_path: Path) -> None:
    with private_folder(str(tmp_path)) as first:
        with private_folder(str(tmp_path)):
            assert Path(first).exists()
        assert Path(first).exists()


def change_mode(left: Path) -> None:
    left.chmod(0o755)


def add_a_file(left: Path) -> None:
    (left / "archive.vma.zst").touch()


def add_a_folder(left: Path) -> None:
    (left / "archives").mkdir()


def change_name(left: Path) -> None:
    left.rename(left.with_name("pybackup-20261126"))


def put_a_link_there(left: Path) -> None:
    left.rename(left.with_name("elsewhere"))
    left.symlink_to("elsewhere")


@pytest.mark.parametrize("change", [change_mode, add_a_file, add_a_folder, change_name, put_a_link_there])
def test_what_may_be_somebody_elses_stays(tmp_path: Path, left: Path, change: Callable[[Path], None]) -> None:
    change(left)
    before = sorted(tmp_path.rglob("*"))
    assert len(before) > 2
    with private_folder(str(tmp_path)):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_another_user_s_folder_stays(tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    module._sweep(str(tmp_path))
    assert len(list(left.iterdir())) == 2


def test_one_that_is_swept_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    mkdtemp = module.tempfile.mkdtemp

    def swept_at_once(**options: str) -> str:
        made.append(mkdtemp(**options))
        if len(made) == 1:
            module._sweep(options["dir"])
        return made[-1]

    monkeypatch.setattr(module.tempfile, "mkdtemp", swept_at_once)
    with private_folder(str(tmp_path)) as folder:
        assert folder == made[1]
        assert not Path(made[0]).exists()


def test_many_at_once_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    def use(_: int) -> bool:
        with private_folder(str(tmp_path)) as folder:
            Path(folder, "link").symlink_to("x")
            return Path(folder, "link").is_symlink()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(200)))
    assert list(tmp_path.iterdir()) == []


def test_without_locks_nothing_is_swept(tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with private_folder(str(tmp_path)) as folder:
        assert Path(folder).exists()
    assert list(tmp_path.iterdir()) == [left]
