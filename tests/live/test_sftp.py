"""Archives over SFTP: a real server, real processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Outcome, end, pybackup, start, wait_until
from sftp_server import PASSWORD, Files, sftp_server

MIB = 1 << 20
DISK = random.Random(1).randbytes(5 * MIB)
Run = Callable[..., Outcome]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    (tmp_path / "remote").mkdir()
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    with sftp_server(tmp_path / "remote") as files:
        (tmp_path / "home" / ".ssh" / "known_hosts").write_text(files.known_hosts())
        (tmp_path / "disk.img").write_bytes(DISK)
        yield files


@pytest.fixture
def environment(files: Files, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(tmp_path / "home"), "SSH_AUTH_SOCK": "", "PYBACKUP_PATIENCE": "8"}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    def run(*arguments: str, code: int = 0) -> Outcome:
        done = pybackup(*arguments, env=environment, cwd=tmp_path)
        assert done.code == code, done.err
        assert "Traceback" not in done.err and PASSWORD not in done.err and PASSWORD.encode() not in done.out
        assert code == 0 or len(done.err.splitlines()) == 1, done.err
        return done

    return run


def url_of(files: Files, name: str, password: str = PASSWORD) -> str:
    return f"sftp://user:{password}@127.0.0.1:{files.port}/{name}"


def test_an_archive_goes_there_and_back(run: Run, files: Files, tmp_path: Path) -> None:
    url = url_of(files, "x.vma.zst")
    assert run("run", "--json", "disk.img", url).json["archive"] == f"sftp://user@127.0.0.1:{files.port}/x.vma.zst"
    assert os.listdir(files.folder) == ["x.vma.zst"]
    run("verify", str(files.folder / "x.vma.zst"))
    run("verify", url)
    assert run("info", "--json", url).json["drives"][0]["size"] == len(DISK)
    assert run("restore", url, "-").out == DISK
    run("compare", url, "disk.img")


def test_a_file_that_exists_is_not_replaced(run: Run, files: Files) -> None:
    (files.folder / "x").write_bytes(b"precious")
    for force in ((), ("--force",)):
        assert "was the archive's name forgotten" in run("run", *force, "disk.img", url_of(files, "x"), code=5).err
    assert (files.folder / "x").read_bytes() == b"precious"
    (files.folder / "x").unlink()
    run("run", "disk.img", url_of(files, "x"))
    assert "--force replaces it" in run("run", "disk.img", url_of(files, "x"), code=5).err
    run("run", "--force", "disk.img", url_of(files, "x"))
    assert run("restore", url_of(files, "x"), "-").out == DISK


def test_a_write_that_fails_leaves_nothing(run: Run, files: Files) -> None:
    """The last of them fails when nothing but the end of the file is waited for."""
    run("run", "disk.img", url_of(files, "whole"))
    (files.folder / "whole").unlink()
    last = files.writes
    for number in (1, last // 2, last):
        files.writes, files.fail_write = 0, number
        run("run", "disk.img", url_of(files, "x"), code=5)
        assert os.listdir(files.folder) == []


def test_a_connection_that_breaks_while_reading_is_made_anew(run: Run, files: Files) -> None:
    run("run", "disk.img", url_of(files, "x"))
    files.reads, files.drop_at_read = 0, 40
    assert run("restore", url_of(files, "x"), "-").out == DISK
    assert files.reads > 40


@contextlib.contextmanager
def writing(files: Files, environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A backup of which something has arrived, and whose source says no more."""
    url = url_of(files, "x")
    with start("run", "disk=-", "--size", "60M", url, env=environment, cwd=folder) as process:
        assert process.stdin is not None
        process.stdin.write(8 * DISK)
        process.stdin.flush()
        wait_until(lambda: files.writes > 0, "a write", [process])
        yield process


def test_a_connection_that_breaks_leaves_nothing_under_the_name(
    files: Files, environment: dict[str, str], tmp_path: Path
) -> None:
    with writing(files, environment, tmp_path) as process:
        files.drop_connections()
        out, err = process.communicate(4 * DISK, timeout=60)
    assert process.returncode == 5 and out == b"", err
    assert b"Traceback" not in err and len(err.splitlines()) == 1, err
    assert "x" not in os.listdir(files.folder)


def test_a_signal_leaves_nothing(files: Files, environment: dict[str, str], tmp_path: Path) -> None:
    with writing(files, environment, tmp_path) as process:
        assert end(process, signal.SIGINT).code == 130
    assert os.listdir(files.folder) == []


def test_what_a_killed_run_left_is_removed_by_the_next(
    run: Run, files: Files, environment: dict[str, str], tmp_path: Path
) -> None:
    (files.folder / ".x.01234567.partial").write_bytes(b"somebody else's")
    with writing(files, environment, tmp_path) as process:
        assert "another run is writing" in run("run", "disk.img", url_of(files, "x"), code=6).err
        assert end(process, signal.SIGKILL).code == 137
    assert len(os.listdir(files.folder)) == 2
    run("run", "disk.img", url_of(files, "x"))
    assert sorted(os.listdir(files.folder)) == [".x.01234567.partial", "x"]


def test_a_host_that_is_not_known_is_not_trusted(run: Run, files: Files, tmp_path: Path) -> None:
    (tmp_path / "home" / ".ssh" / "known_hosts").write_text("")
    for arguments, code in ((("run", "disk.img", url_of(files, "x")), 5), (("info", url_of(files, "x")), 4)):
        assert "known_hosts" in run(*arguments, code=code).err


def test_what_is_not_there(run: Run, files: Files) -> None:
    assert "it does not exist" in run("info", url_of(files, "nothing"), code=4).err
    assert "it does not exist" in run("run", "disk.img", url_of(files, "no/folder"), code=5).err
    assert "the login was refused" in run("info", url_of(files, "x", "wrong"), code=4).err
    assert "names no host" in run("info", "sftp:///x", code=2).err
