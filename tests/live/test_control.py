"""Steering a running server: what its control socket does, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.nbd_client import Nbd
from live.processes import PYBACKUP, Server, call, ended, info, interrupt, restored, served, start, until

SIZE = 4 << 20


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture(name="server")
def _server(tmp_path: Path, disk: Path) -> Iterator[Server]:
    with served(tmp_path, str(disk)) as server:
        yield server


def leaves_all_well(server: Server, folder: Path) -> None:
    """After a backup that did not end well: nothing is left of it, guests write, and the next backup works."""
    until(lambda: server.job() is None)
    assert not server.is_armed()
    assert not (folder / "out.vma").exists()
    content = random.Random(2).randbytes(100_000)
    with Nbd(server.nbd, "disk") as guest:
        guest.write(12_345, content)
        call("run", f"serve:{server.control}", str(folder / "out.vma"))
        guest.zero(0, SIZE)
    assert restored(folder / "out.vma", folder / "out")["disk"][12_345:112_345] == content


def test_a_second_backup_is_refused(server: Server, tmp_path: Path) -> None:
    first = server.start_backup(str(tmp_path / "out.vma"))
    second = call("run", f"serve:{server.control}", str(tmp_path / "second.vma"), code=6)
    assert second.stderr == "pybackup: a backup of these disks is running already\n"
    call("ctl", server.control, "speed", "0")
    assert ended(first) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".vma") == ["out.vma"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_client_cancels(server: Server, tmp_path: Path, number: int, code: int) -> None:
    client = server.start_backup(str(tmp_path / "out.vma"))
    assert interrupt(client, number) == (code, "pybackup: cancelled\n")
    assert not [path for path in tmp_path.iterdir() if "out.vma" in path.name]
    until(lambda: server.job() is None)
    # A client that is cancelled in the moment between its request and the first cluster just goes.
    told = {"whoever asked for the backup gave up: cancelled", "whoever asked for the backup has gone"}
    assert server.ask("status")["last"]["error"] in told
    leaves_all_well(server, tmp_path)


def test_a_client_that_is_killed_harms_nobody(server: Server, tmp_path: Path) -> None:
    client = server.start_backup(str(tmp_path / "out.vma"))
    assert interrupt(client, signal.SIGKILL) == (-signal.SIGKILL, "")
    leaves_all_well(server, tmp_path)


def test_ctl_cancels(server: Server, tmp_path: Path) -> None:
    client = server.start_backup(str(tmp_path / "out.vma"))
    call("ctl", server.control, "cancel")
    assert ended(client) == (1, "pybackup: the backup was cancelled by `pybackup ctl`\n")
    last = server.ask("status")["last"]
    assert (last["state"], last["exit_code"]) == ("concluded", 1)
    leaves_all_well(server, tmp_path)


def test_ctl_cancels_while_the_archive_is_read_back(server: Server, tmp_path: Path) -> None:
    """The server has sent everything, and waits until the archive is complete; a stopped client stands for that."""
    trace = ["--trace", "archive.finish", "--verify"]
    client = server.start_client(str(tmp_path / "out.vma"), "--speed", "2M", *trace)
    until(server.is_armed)
    client.send_signal(signal.SIGSTOP)
    call("ctl", server.control, "speed", "0")
    until(lambda: (server.job() or {"done": SIZE})["done"] == SIZE)
    call("ctl", server.control, "cancel")
    client.send_signal(signal.SIGCONT)
    code, said = ended(client)
    assert code == 1 and said.endswith("pybackup: the backup was cancelled by `pybackup ctl`\n")
    leaves_all_well(server, tmp_path)


def test_quit_and_signals_to_the_server_end_a_backup_with_a_sentence(tmp_path: Path, disk: Path) -> None:
    for number in (None, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with served(tmp_path, str(disk)) as server:
            client = server.start_backup(str(tmp_path / "out.vma"))
            if number is None:
                call("ctl", server.control, "quit")
            else:
                server.process.send_signal(number)
            assert ended(client) == (3, "pybackup: the server was stopped\n")
            assert ended(server.process) == (0, "")
        assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]


def test_a_killed_server_fails_the_backup(tmp_path: Path, disk: Path) -> None:
    with served(tmp_path, str(disk)) as server:
        client = server.start_backup(str(tmp_path / "out.vma"))
        server.process.kill()
        assert ended(client) == (3, f"pybackup: the server at {server.control} ended the connection\n")
        server.process.wait()
    # Sockets of the dead are replaced.
    with served(tmp_path, str(disk)) as server:
        leaves_all_well(server, tmp_path)


def test_pause_speed_and_resume(server: Server, tmp_path: Path) -> None:
    client = server.start_backup(str(tmp_path / "out.vma"))
    call("ctl", server.control, "pause")
    call("ctl", server.control, "speed", "0")
    before = server.job()
    assert before is not None and before["state"] == "paused" and before["speed"] == 0
    with Nbd(server.nbd, "disk") as guest:
        # Guests' writes go on, and what they overwrite is saved all the same.
        guest.write(SIZE - 65_536, bytes(65_536))
    until(lambda: (server.job() or before)["done"] > before["done"])
    call("ctl", server.control, "resume")
    assert ended(client) == (0, "")
    assert restored(tmp_path / "out.vma", tmp_path / "out")["disk"] == random.Random(1).randbytes(SIZE)


def test_status_is_for_people_and_for_programs(server: Server, tmp_path: Path) -> None:
    assert call("ctl", server.control, "status").stdout.endswith("none yet\n")
    with Nbd(server.nbd, "disk"):
        client = server.start_backup(str(tmp_path / "out.vma"))
        status = json.loads(call("ctl", server.control, "status", "--json").stdout)
        drive = {"name": "disk", "size": SIZE, "read_only": False, "armed": True, "connections": 1, "archive": False}
        assert status["drives"] == [drive | {"changed": None}] and status["archives"] == []
        assert status["connections"] == 1
        assert status["job"]["size"] == SIZE and status["job"]["speed"] == 65_536 and status["last"] is None
        assert "1 client" in call("ctl", server.control, "status").stdout
    assert interrupt(client)[0] == 130


def test_stored_and_written_are_those_of_the_archive(server: Server, tmp_path: Path) -> None:
    """Half of the disk is zeros and no hole: only who writes the archive knows."""
    with Nbd(server.nbd, "disk") as guest:
        guest.write(SIZE // 2, bytes(SIZE // 2))
    archive = tmp_path / "out.vma"
    report = json.loads(call("run", "--json", f"serve:{server.control}", str(archive)).stdout)
    last = server.ask("status")["last"]
    assert last["stored"] == report["stored"] == SIZE // 2
    assert last["written"] == report["written"] == archive.stat().st_size
    assert "2.00 MiB stored in 2.00 MiB" in call("ctl", server.control, "status").stdout
    # While it runs, too.
    client = server.start_backup(str(tmp_path / "slow.vma"))
    until(lambda: (server.job() or {"stored": 0})["stored"] > 0)
    call("ctl", server.control, "cancel")
    assert ended(client)[0] == 1


def test_ctl_takes_what_serve_prints_and_knows_what_is_meant(server: Server, tmp_path: Path) -> None:
    printed = server.lines[-1]
    assert printed.startswith("serve:")
    assert call("ctl", printed, "status").stdout == call("ctl", server.control, "status").stdout
    for arguments in (["--json", printed, "status"], [printed, "--json", "status"], [printed, "status", "--json"]):
        assert json.loads(call("ctl", *arguments).stdout)["job"] is None
    assert json.loads(call("ctl", printed, "backup", str(tmp_path / "o.vma"), "--json").stdout)["archive"]
    for word, meant in (("stat", "status"), ("stop", "cancel"), ("start", "backup"), ("resum", "resume")):
        assert f"did you mean {meant}?" in call("ctl", printed, word, code=2).stderr
    assert "there is '--loud'" in call("ctl", printed, "status", "--loud", code=2).stderr


def test_every_help_is_the_right_one() -> None:
    assert "--skip-unreadable" in call("ctl", "C", "backup", "--help").stdout
    for arguments in (["--help"], ["C", "--help"], ["C", "status", "--help"], ["C", "speed", "-h"]):
        assert "pause, resume" in call("ctl", *arguments).stdout


def test_the_folder_of_the_sockets_is_made_and_goes(tmp_path: Path, disk: Path) -> None:
    folder = tmp_path / "vm"
    where = ["--control", str(folder / "control.sock"), "--socket", str(folder / "nbd.sock")]
    with start([PYBACKUP, "serve", *where, str(disk)]):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    folder.mkdir(0o755)
    with start([PYBACKUP, "serve", *where, str(disk)]):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755, "it is somebody's"
    assert folder.exists()


def test_what_makes_no_sense_is_wrong_usage(server: Server, tmp_path: Path) -> None:
    for what in (["pause"], ["cancel"], ["speed", "1M"]):
        assert "no backup is running" in call("ctl", server.control, *what, code=2).stderr
    for what in (["speed"], ["speed", "fast"], ["pause", "now"], ["dance"], ["backup"]):
        call("ctl", server.control, *what, code=2)
    nobody = str(tmp_path / "nobody.sock")
    assert "cannot reach a server" in call("ctl", nobody, "status", code=3).stderr
    assert "cannot reach a server" in call("run", f"serve:{'x' * 200}", str(tmp_path / "o.vma"), code=3).stderr
    both = call("run", f"serve:{server.control}", str(tmp_path / "disk.img"), str(tmp_path / "o.vma"), code=2)
    assert "name one serve:CONTROL" in both.stderr


def test_a_disk_that_is_served_is_locked(server: Server, tmp_path: Path, disk: Path) -> None:
    assert "in use" in call("run", str(disk), str(tmp_path / "out.vma"), code=6).stderr
    assert "in use" in call("serve", str(disk), code=6).stderr


def test_sockets_are_private(tmp_path: Path, disk: Path) -> None:
    with served(tmp_path, str(disk), private=True, environment={"XDG_RUNTIME_DIR": str(tmp_path)}) as server:
        folder = Path(server.control).parent
        assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in (server.control, server.nbd):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600 and Path(path).parent == folder
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]
    with served(tmp_path, str(disk)) as server:
        assert [stat.S_IMODE(os.stat(path).st_mode) for path in (server.control, server.nbd)] == [0o600] * 2


# -- strangers --


def say(server: Server, said: bytes, *descriptors: int) -> bytes:
    """Send this to the control socket and hang up; what comes back until the server hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(server.control)
        answer = b""
        try:
            if descriptors:
                socket.send_fds(sock, [said], list(descriptors))
            else:
                sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(65536):
                answer += part
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer


NONSENSE = [
    b"",
    b"\n",
    b"\0" * 1000 + b"\n",
    b"x" * (1 << 20),
    b"x" * (1 << 20) + b"\n",
    b"[" * 60_000 + b"\n",
    b"1" * 60_000 + b"\n",
    b'"status"\n[]\nnull\n{}\n{"command": null}\n{"command": []}\n{"command": "__init__"}\n',
    b'{"command": "backup"}\n{"command": "backup", "speed": -1}\n{"command": "backup", "speed": "fast"}\n',
    b'{"command": "speed"}\n{"command": "speed", "speed": true}\n{"command": "speed", "speed": NaN}\n',
    b'{"command": "speed", "speed": 1' + b"0" * 400 + b"}\n",
    b'{"command": "status"}',
    b'{"command": "\xff\xfe"}\n',
    random.Random(3).randbytes(70_000),
]


def test_a_strangers_nonsense_harms_nobody(server: Server, tmp_path: Path) -> None:
    client = server.start_backup(str(tmp_path / "out.vma"))
    for said in NONSENSE:
        for line in say(server, said).splitlines():
            assert json.loads(line)["ok"] is False
    assert server.ask("status")["job"]["state"] == "running"
    call("ctl", server.control, "speed", "0")
    assert ended(client) == (0, "")
    assert restored(tmp_path / "out.vma", tmp_path / "out")["disk"] == random.Random(1).randbytes(SIZE)


def test_wrong_descriptors_are_refused_and_closed(server: Server, disk: Path) -> None:
    ask = b'{"command": "backup"}\n'
    open_before = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    reading, writing = os.pipe()
    with disk.open("rb") as file, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as lonely:
            for fd in (file.fileno(), reading, writing, datagram.fileno(), tcp.fileno()):
                assert b"one end of a Unix stream socket pair" in say(server, ask, fd)
            # Right of its kind, but nobody is at the other end.
            assert b'"ok": false' in say(server, ask, lonely.fileno())
            lonely.bind("")
            lonely.listen()
            assert b'"ok": false' in say(server, ask, lonely.fileno())
            # More than one, without end, and with other requests.
            assert b'"ok": true' in say(server, b'{"command": "status"}\n', *[reading] * 200)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(server.control)
                for _ in range(1000):
                    socket.send_fds(sock, [b" "], [reading] * 4)
                until(lambda: server.job() is None)
                assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < open_before + 8
    os.close(reading)
    os.close(writing)
    until(lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) <= open_before)


def test_too_many_clients_leave_guests_alone(server: Server) -> None:
    crowd = []
    with Nbd(server.nbd, "disk") as guest:
        for _ in range(200):
            crowd.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            crowd[-1].connect(server.control)
        guest.write(0, b"alive")
        assert guest.read(0, 5) == b"alive"
        with Nbd(server.nbd, "disk") as other:
            assert other.read(0, 5) == b"alive"
        for sock in crowd:
            sock.close()
    until(lambda: say(server, b'{"command": "status"}\n'))


def test_the_archive_tells_where_it_comes_from(server: Server, tmp_path: Path) -> None:
    call("run", f"serve:{server.control}", str(tmp_path / "out.vma"))
    assert '"live"' in json.dumps(info(tmp_path / "out.vma"))


def test_a_client_that_takes_nothing_harms_nobody(server: Server, tmp_path: Path) -> None:
    client = server.start_client(str(tmp_path / "out.vma"), "--speed", "64K")
    until(server.is_armed)
    client.send_signal(signal.SIGSTOP)
    call("ctl", server.control, "speed", "0")
    with Nbd(server.nbd, "disk") as guest:
        for offset in range(0, SIZE, 65_536):
            guest.write(offset, b"new")
    call("ctl", server.control, "cancel")
    client.send_signal(signal.SIGCONT)
    assert ended(client)[0] == 1
    leaves_all_well(server, tmp_path)


def test_a_full_disk_fails_the_backup_and_no_guest(server: Server, tmp_path: Path) -> None:
    with Nbd(server.nbd, "disk") as guest:
        said = call("run", f"serve:{server.control}", "/dev/full", code=5).stderr
        assert "no space is left" in said
        # A limit of 1 MiB stands for a disk that becomes full in the middle.
        command = ["bash", "-c", 'ulimit -f 1024; exec "$@"', "-", PYBACKUP, "run", f"serve:{server.control}"]
        archive = tmp_path / "out.vma"
        done = subprocess.run([*command, str(archive), "--speed", "3M"], capture_output=True, text=True)
        assert done.returncode == 5 and f"cannot write {archive}" in done.stderr
        guest.write(0, b"on and on")
    until(lambda: server.job() is None)
    last = server.ask("status")["last"]
    assert last["error"].startswith(f"whoever asked for the backup gave up: cannot write {archive}")
    leaves_all_well(server, tmp_path)


def test_help_tells_of_everything() -> None:
    said = subprocess.run([PYBACKUP, "ctl", "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("backup", "status", "speed", "pause", "resume", "cancel", "quit"):
        assert command in said
