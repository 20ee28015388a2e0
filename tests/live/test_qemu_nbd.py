"""Our qemu-nbd never outlives us, and never fails in silence."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import encode
from command_line import end, pybackup, start, wait_until
from conftest import need
from qemu_images import Kind, content, make, qemu_img, servers_of

SOURCE, TARGET = ("run", "disk.qcow2", "out.vma"), ("restore", "disk.vma", "new.qcow2")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An image that takes a while at a low speed, and an archive of the same kind."""
    need("qemu-img", "qemu-nbd")
    noise = os.urandom(16 << 20)
    (tmp_path / "disk.img").write_bytes(noise)
    (tmp_path / "disk.vma").write_bytes(encode({"disk": noise}))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "disk.img", tmp_path / "disk.qcow2")
    (tmp_path / "tmp").mkdir()
    yield tmp_path
    wait_until(lambda: not servers_of(tmp_path), "the end of qemu-nbd")
    assert not list((tmp_path / "tmp").iterdir())


def at_work(folder: Path, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """A run that has begun to write its output."""
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    process = start(*arguments, "--speed", "1M", "--progress", "json", cwd=folder, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if b'"done": 0,' not in line and b'"state": "running"' in line:
            return process
    raise AssertionError("it ended too early")


@pytest.mark.parametrize("arguments", [SOURCE, TARGET], ids=["source", "target"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both(folder: Path, arguments: tuple[str, ...], number: signal.Signals) -> None:
    process = at_work(folder, arguments)
    assert len(servers_of(folder)) == 1
    done = end(process, number)
    assert done.code == 128 + number
    assert "Traceback" not in done.err
    assert not servers_of(folder)
    assert not (folder / arguments[-1]).exists()


@pytest.mark.parametrize("arguments", [SOURCE, TARGET], ids=["source", "target"])
def test_ctrl_c_in_the_terminal_is_ours(folder: Path, arguments: tuple[str, ...]) -> None:
    process = at_work(folder, arguments)
    (server,) = servers_of(folder)
    assert os.getsid(server) == server != os.getsid(process.pid)
    assert end(process, signal.SIGINT).code == 130


@pytest.mark.parametrize("arguments", [SOURCE, TARGET], ids=["source", "target"])
def test_it_ends_when_we_are_killed(folder: Path, arguments: tuple[str, ...]) -> None:
    process = at_work(folder, arguments)
    assert len(servers_of(folder)) == 1
    assert end(process, signal.SIGKILL).code == 137
    wait_until(lambda: not servers_of(folder), "the end of qemu-nbd")
    assert not (folder / arguments[-1]).exists()
    # What was left is in nobody's way.
    assert pybackup(*arguments, cwd=folder).code == 0


def test_it_ends_when_we_are_killed_before_it_is_used(folder: Path) -> None:
    """A qemu-nbd that cannot say its first word yet, for its image is a pipe that nobody writes to."""
    need("setpriv")
    os.mkfifo(folder / "slow")
    (folder / "bin").mkdir()
    program = folder / "bin" / "qemu-nbd"
    program.write_text(f"#!/bin/sh\nexec tail -f {folder}/slow qemu-nbd\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    process = start(*SOURCE, cwd=folder, env=environment)
    wait_until(lambda: bool(children_with(f"{folder}/slow")), "the program", [process])
    assert end(process, signal.SIGKILL).code == 137
    wait_until(lambda: not children_with(f"{folder}/slow"), "its end")


def test_it_is_not_started_when_we_were_killed_before(folder: Path) -> None:
    """A machine so busy that we are gone before anything could be asked of the kernel."""
    need("setpriv")
    (folder / "bin").mkdir()
    program = folder / "bin" / "setpriv"
    program.write_text(f'#!/bin/sh\nread -r line <{folder}/go\nexec {shutil.which("setpriv")} "$@"\n')
    program.chmod(0o755)
    os.mkfifo(folder / "go")
    environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    process = start(*SOURCE, cwd=folder, env=environment)
    wait_until(lambda: bool(children_with(f"{folder}/bin/setpriv")), "the program", [process])
    assert end(process, signal.SIGKILL).code == 137
    with open(folder / "go", "w") as go:
        go.write("\n")
    wait_until(lambda: not children_with(f"{folder}/bin/setpriv") and not servers_of(folder), "its end")
    assert pybackup(*SOURCE, cwd=folder).code == 0


def test_without_setpriv(folder: Path) -> None:
    (folder / "bin").mkdir()
    for name in ("qemu-nbd", "qemu-img"):
        (folder / "bin" / name).symlink_to(str(shutil.which(name)))
    environment = {**os.environ, "PATH": f"{folder}/bin"}
    process = start(*SOURCE, cwd=folder, env=environment)
    wait_until(lambda: bool(servers_of(folder)), "qemu-nbd", [process])
    assert end(process, signal.SIGKILL).code == 137
    wait_until(lambda: not servers_of(folder), "the end of qemu-nbd")
    assert pybackup(*SOURCE, cwd=folder, env=environment).code == 0


def children_with(word: str) -> list[str]:
    """The processes, ours or not, whose command line has this word."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(process.name)
    return found


@pytest.mark.parametrize("arguments, code", [(SOURCE, 3), (TARGET, 5)], ids=["source", "target"])
def test_a_qemu_nbd_that_dies(folder: Path, arguments: tuple[str, ...], code: int) -> None:
    process = at_work(folder, arguments)
    (server,) = servers_of(folder)
    os.kill(server, signal.SIGKILL)
    done = end(process)
    assert done.code == code
    last = done.err.splitlines()[-1]
    assert last.startswith("pybackup: ") and "qemu-nbd ended the connection" in last
    assert not (folder / arguments[-1]).exists()


def test_it_ends_after_success_and_failure(tmp_path: Path) -> None:
    need("qemu-img", "qemu-nbd")
    image = make(tmp_path, Kind("qcow2", "qcow2"))
    assert pybackup("run", image, tmp_path / "out.vma").code == 0
    assert not servers_of(tmp_path)
    assert pybackup("run", image, tmp_path / "out.vma").code == 5  # it exists
    assert not servers_of(tmp_path)
    assert pybackup("compare", tmp_path / "out.vma", image).code == 0
    assert not servers_of(tmp_path)
    assert (tmp_path / "disk.img").read_bytes() == content()


def test_a_service_with_sockets_of_its_own(tmp_path: Path) -> None:
    """What systemd told us of sockets is not told to qemu-nbd."""
    need("qemu-img", "qemu-nbd")
    image = make(tmp_path, Kind("qcow2", "qcow2"))
    environment = {**os.environ, "LISTEN_FDS": "3", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a:b:c"}
    assert pybackup("run", image, tmp_path / "out.vma", env=environment).code == 0
