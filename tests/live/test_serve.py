"""What `pybackup serve` offers, and how it begins and ends."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import need
from live.nbd_client import Nbd
from live.processes import PYBACKUP, call, ended, restored, served, start, until

from pybackup.formats import nbd_wire as wire

SIZE = (3 << 20) + 512


def make_disk(path: Path, seed: int = 1) -> bytes:
    content = random.Random(seed).randbytes(SIZE // 2)
    path.write_bytes(content + bytes(SIZE - len(content)))
    return path.read_bytes()


def test_disks_by_their_names(tmp_path: Path) -> None:
    one, two = make_disk(tmp_path / "one.img"), make_disk(tmp_path / "two.img", 2)
    with served(tmp_path, str(tmp_path / "one.img"), f"second={tmp_path / 'two.img'}") as server:
        assert [line.partition("?")[0] for line in server.lines[:-1]] == ["nbd+unix:///one", "nbd+unix:///second"]
        with Nbd(server.nbd, "one") as first, Nbd(server.nbd, "second") as second:
            assert (first.read(0, SIZE), second.read(0, SIZE)) == (one, two)


def test_what_was_flushed_survives_kill_9(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk.img")
    data = random.Random(3).randbytes(70_000)
    with served(tmp_path, str(tmp_path / "disk.img")) as server:
        # A backup is at work, so that these go the long way.
        server.start_backup(str(tmp_path / "out.vma"))
        with Nbd(server.nbd, "disk") as guest:
            guest.write(1000, data)
            guest.flush()
            guest.write(200_000, data, fua=True)
            server.process.kill()
        server.process.wait()
    disk = (tmp_path / "disk.img").read_bytes()
    assert disk[1000:71_000] == disk[200_000:270_000] == data


def test_read_only(tmp_path: Path) -> None:
    content = make_disk(tmp_path / "disk.img")
    (tmp_path / "disk.img").chmod(0o400)
    with served(tmp_path, "--read-only", str(tmp_path / "disk.img")) as server:
        with Nbd(server.nbd, "disk") as guest:
            assert guest.flags & wire.FLAG_READ_ONLY
            for change in (lambda: guest.write(0, b"x"), lambda: guest.zero(0, 512)):
                with pytest.raises(OSError) as failure:
                    change()
                assert failure.value.errno == errno.EPERM
            assert guest.read(0, SIZE) == content
        call("run", f"serve:{server.control}", str(tmp_path / "out.vma"))
    assert restored(tmp_path / "out.vma", tmp_path / "out")["disk"] == content


def test_an_archive_is_served_and_equals_the_disks(tmp_path: Path) -> None:
    need("nbdcopy", "qemu-img")
    contents = {name: make_disk(tmp_path / f"{name}.img", seed) for seed, name in enumerate(("a", "b"))}
    archive = tmp_path / "out.vma"
    call("run", str(tmp_path / "a.img"), str(tmp_path / "b.img"), str(archive))
    with served(tmp_path, str(archive)) as server:
        for uri, (name, content) in zip(server.lines, contents.items(), strict=False):
            copy = tmp_path / f"{name}.copy"
            subprocess.run(["nbdcopy", uri, str(copy)], check=True)
            assert copy.read_bytes()[:SIZE] == content
            compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(tmp_path / f"{name}.img"), uri]
            subprocess.run(compare, check=True, stdout=subprocess.DEVNULL)
        # All drives of an archive at once: they share its caches.
        both = [subprocess.Popen(["nbdcopy", uri, f"{tmp_path}/{n}.again"]) for n, uri in enumerate(server.lines[:2])]
        assert [process.wait() for process in both] == [0, 0]
        assert (tmp_path / "1.again").read_bytes()[:SIZE] == contents["b"]
        refused = call("run", f"serve:{server.control}", str(tmp_path / "again.vma"), code=3)
        assert "nothing to back up" in refused.stderr
        told = call("ctl", server.control, "status").stdout.splitlines()
        assert told == [f"drive    {name}: {SIZE >> 20}.00 MiB, of an archive, 0 clients" for name in contents]


def test_tcp_on_the_loopback(tmp_path: Path) -> None:
    content = make_disk(tmp_path / "disk.img")
    command = [PYBACKUP, "serve", "--tcp", "127.0.0.1:0", "--control", str(tmp_path / "control.sock")]
    with start([*command, str(tmp_path / "disk.img")]) as server:
        uri = server.lines[0]
        assert uri.startswith("nbd://127.0.0.1:") and len(server.lines) == 2
        need("nbdcopy")
        subprocess.run(["nbdcopy", uri, str(tmp_path / "copy")], check=True)
    assert (tmp_path / "copy").read_bytes()[:SIZE] == content


def test_systemd_is_told_when_it_is_ready(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk.img")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        with served(tmp_path, str(tmp_path / "disk.img"), environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}):
            assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"STOPPING=1"


def test_systemd_opens_the_sockets(tmp_path: Path) -> None:
    content = make_disk(tmp_path / "disk.img")
    control, path = tmp_path / "control.sock", str(tmp_path / "activated.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        # As systemd does it: the first descriptor is 3, and LISTEN_PID is the process that is to take it.
        script = 'exec 3<&$0; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        serve = [PYBACKUP, "serve", "--control", str(control), str(tmp_path / "disk.img")]
        with start(
            ["bash", "-c", script, str(listener.fileno()), *serve], pass_fds=[listener.fileno()], cwd=tmp_path
        ) as server:
            assert server.lines == [f"nbd+unix:///disk?socket={path}", f"serve:{control}"]
            with Nbd(path, "disk") as guest:
                assert guest.read(0, SIZE) == content
    # The sockets of systemd stay; nothing else is left.
    assert sorted(one.name for one in tmp_path.iterdir()) == ["activated.sock", "disk.img"]


def test_what_cannot_be_served(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk.img")
    (tmp_path / "file").write_text("no socket")
    cases = [
        (["--tcp", "nowhere", str(tmp_path / "disk.img")], 2),
        (["--socket", str(tmp_path / "file"), str(tmp_path / "disk.img")], 5),
        (["--control", str(tmp_path / "file"), str(tmp_path / "disk.img")], 5),
        (["--control", str(tmp_path / "file" / "socket"), str(tmp_path / "disk.img")], 5),
        ([str(tmp_path / "nothing.img")], 3),
        ([str(tmp_path / "disk.img"), str(tmp_path / "disk.img")], 2),
        (["-"], 2),
    ]
    for arguments, code in cases:
        call("serve", *arguments, code=code)
    assert (tmp_path / "file").read_text() == "no socket"


def test_a_fleecing_folder_that_is_missing_is_told_and_fails_the_backup_only(tmp_path: Path) -> None:
    content = make_disk(tmp_path / "disk.img")
    with served(tmp_path, "--fleece", str(tmp_path / "missing"), str(tmp_path / "disk.img")) as server:
        client = server.start_client(str(tmp_path / "out.vma"))
        code, said = ended(client)
        assert code == 5 and "fleecing file" in said
        with Nbd(server.nbd, "disk") as guest:
            assert guest.read(0, SIZE) == content
        (tmp_path / "missing").mkdir()
        call("run", f"serve:{server.control}", str(tmp_path / "out.vma"))
        server.process.terminate()
        code, said = ended(server.process)
        assert code == 0 and said.count("\n") == 1 and "backups will fail until it can be used" in said
    assert not list((tmp_path / "missing").iterdir())


@pytest.mark.parametrize("options", [["--cow-timeout", "0"], ["--cow-timeout", "0.5", "--no-fleece"]])
def test_old_data_is_fleeced_by_default_and_leaves_nothing_behind(tmp_path: Path, options: list[str]) -> None:
    """The guest overwrites all of a disk whose archive takes nothing; and then the server is killed."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    (tmp_path / "disk.img").write_bytes(random.Random(3).randbytes(24 << 20))
    options = ["--cow-buffer", "1M", *options, str(tmp_path / "disk.img")]
    with served(tmp_path, *options, environment={"TMPDIR": str(folder)}) as server:
        client = server.start_backup(str(tmp_path / "out.vma"))
        client.send_signal(signal.SIGSTOP)
        with Nbd(server.nbd, "disk") as guest:
            for at in range(0, 24 << 20, 1 << 20):
                guest.write(at, bytes(1 << 20))
        opened = [os.readlink(link) for link in Path(f"/proc/{server.process.pid}/fd").iterdir()]
        fleeced = [name for name in opened if name.startswith(str(folder))]
        assert bool(fleeced) == ("--no-fleece" not in options) and not list(folder.iterdir())
        if fleeced:
            job = server.job()
            assert job is not None and job["error"] is None
        else:
            until(lambda: server.ask("status")["last"] is not None)
            assert "the archive is too slow" in server.ask("status")["last"]["error"]
        for process in (server.process, client):
            process.kill()
            process.wait()
        assert not list(folder.iterdir())


@pytest.mark.parametrize("where", ["missing", "in memory"])
def test_a_default_folder_that_cannot_be_used_is_told_once(tmp_path: Path, where: str) -> None:
    make_disk(tmp_path / "disk.img")
    folder = "/dev/shm" if where == "in memory" else str(tmp_path / "missing")
    if where == "in memory" and not os.access(folder, os.W_OK):
        pytest.skip("there is no /dev/shm")
    with served(tmp_path, str(tmp_path / "disk.img"), environment={"TMPDIR": folder}) as server:
        call("run", f"serve:{server.control}", str(tmp_path / "out.vma"))
        server.process.terminate()
        code, said = ended(server.process)
        assert code == 0 and said.count("\n") == 1
        assert said.startswith("pybackup: warning: ") and folder in said and "old data waits in memory alone" in said
    # Where nothing can be written there is nothing to say.
    with served(tmp_path, "--read-only", str(tmp_path / "disk.img"), environment={"TMPDIR": folder}):
        pass
