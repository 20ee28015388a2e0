"""The disks of running QEMUs, as they were at one instant; and nothing stays behind in the machine."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from conftest import need
from live.guests import Guest, History
from live.killed_runs import guardians_of
from live.processes import PYBACKUP, call, ended, info, interrupt, restored, until
from live.qemu_processes import SIZES, Qemu, machine, make_disks, read_disks, storage_daemon

from pybackup.core.trace import EVENTS

Start = Callable[..., AbstractContextManager[Qemu]]
MIDDLE = 5 << 20


@pytest.fixture(name="before")
def _before(tmp_path: Path) -> dict[str, bytes]:
    return make_disks(tmp_path)


def paused(folder: Path) -> AbstractContextManager[Qemu]:
    return machine(folder, "-S")


KINDS = {"storage daemon": storage_daemon, "machine": machine, "paused machine": paused}
kinds = pytest.mark.parametrize("start", KINDS.values(), ids=KINDS)


def run(command: list[str], code: int = 0, **options: Any) -> str:
    """Run to the end; what was said on stderr."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_each_backup_holds_all_disks_as_they_were_at_one_instant(tmp_path: Path, before: dict[str, bytes]) -> None:
    names = list(SIZES)
    histories = [History(1, names, 0, MIDDLE), History(2, names, MIDDLE, SIZES["b"])]
    runs = [[], ["--speed", "30M"], ["--compress", "none", "--verify"], ["--speed", "60M", "--threads", "1"]]
    bounds = []
    with storage_daemon(tmp_path, guests=True) as qemu:
        nodes = qemu.nodes()
        with Guest(qemu.guests, histories[0], names) as one, Guest(qemu.guests, histories[1], names) as two:
            for number, options in enumerate(runs):
                begin = [one.done, two.done]
                run(qemu.run(tmp_path / f"{number}.vma", "--nbd-socket", qemu.guests, *options))
                bounds.append((begin, [one.done, two.done]))
        qemu.check_clean(nodes)
    for number, (begin, end) in enumerate(bounds):
        disks = restored(tmp_path / f"{number}.vma", tmp_path / f"restored{number}")
        found = [history.instant(before, disks) for history in histories]
        assert all(low <= there <= high + 1 for low, there, high in zip(begin, found, end, strict=True))
        assert found < end
    left = read_disks(tmp_path)
    assert [history.instant(before, left) for history in histories] == [one.done, two.done]


@kinds
def test_the_disks_that_can_be_written_to_are_backed_up(tmp_path: Path, before: dict[str, bytes], start: Start) -> None:
    with start(tmp_path) as qemu:
        nodes = qemu.nodes()
        assert run(qemu.run(tmp_path / "x.vma")) == ""
        if start is not paused:  # a paused machine keeps descriptors until it runs
            qemu.check_clean(nodes)
        assert qemu.found().names == []
    assert restored(tmp_path / "x.vma", tmp_path / "out") == before
    told = json.loads(call("config", str(tmp_path / "x.vma"), "qemu-machine.json").stdout)
    assert told["version"]["qemu"]["major"] >= 5
    assert (told.get("name") == {"name": "guest"}) == (start is not storage_daemon)
    assert [one["kind"] for one in info(tmp_path / "x.vma")["about"]["sources"]] == ["qemu"] * 3


def test_what_a_machine_overwrites_after_the_instant_is_saved(tmp_path: Path, before: dict[str, bytes]) -> None:
    with machine(tmp_path) as qemu:
        nodes = qemu.nodes()
        command = qemu.run(tmp_path / "x.vma", "--trace", "qemu.freeze", "--speed", "16M")
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        next(lines(client))
        for name, device in (("a", "-d a/virtio-backend"), ("b", "b"), ("c", "c")):
            line = f'qemu-io {device} "write -P 99 0 {SIZES[name]}"'
            qemu.ask("human-monitor-command", {"command-line": line})
        assert ended(client) == (0, "")
        qemu.check_clean(nodes)
    assert restored(tmp_path / "x.vma", tmp_path / "out") == before
    assert read_disks(tmp_path) == {name: b"\x63" * size for name, size in SIZES.items()}


def test_disks_are_chosen_and_renamed(tmp_path: Path, before: dict[str, bytes]) -> None:
    with storage_daemon(tmp_path) as qemu:
        run(qemu.run(tmp_path / "two.vma", "--drive", "c", "--drive", "a"))
        assert "has no disk 'x'; it has a, b, c" in run(qemu.run(tmp_path / "none.vma", "--drive", "x"), 2)
        command = qemu.run(tmp_path / "one.vma", "--drive", "b")
        command[2] = f"root={command[2]}"
        run(command)
        assert "the machine has a, b, c" in run([*command[:3], str(tmp_path / "all.vma")], 2)
    assert restored(tmp_path / "two.vma", tmp_path / "two") == {name: before[name] for name in "ac"}
    assert restored(tmp_path / "one.vma", tmp_path / "one") == {"root": before["b"]}
    assert not (tmp_path / "none.vma").exists() and not (tmp_path / "all.vma").exists()


def test_the_archive_goes_to_a_pipe_and_the_environment_may_be_empty(tmp_path: Path, before: dict[str, bytes]) -> None:
    need("zstd")
    with storage_daemon(tmp_path) as qemu, (tmp_path / "x.vma").open("wb") as out:
        client = subprocess.Popen(qemu.run("-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={})
        subprocess.run(["zstd", "-dc"], stdin=client.stdout, stdout=out, check=True)
        assert ended(client) == (0, "")
    assert restored(tmp_path / "x.vma", tmp_path / "out") == before


# -- nothing stays behind --


def started(qemu: Qemu, archive: Path, trace: str, *options: str) -> subprocess.Popen[str]:
    """A backup so slow that it does not come to its end."""
    command = qemu.run(archive, "--trace", trace, "--speed", "64K", *options)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def lines(client: subprocess.Popen[str]) -> Iterator[str]:
    assert client.stderr is not None
    return iter(client.stderr)


def kill(client: subprocess.Popen[str]) -> None:
    client.kill()
    ended(client)


def kill_all(client: subprocess.Popen[str]) -> None:
    """Its guardian too, as systemd may do, or the kernel in a group that has too little memory."""
    client.send_signal(signal.SIGSTOP)
    for guardian in guardians_of(client.pid):
        os.kill(guardian, signal.SIGKILL)
    kill(client)


INSTANTS = [name for name in EVENTS if name.startswith("qemu.")] + ["job.freeze", "copy.read"]


@kinds
def test_a_killed_run_leaves_nothing_that_the_next_does_not_remove(
    tmp_path: Path, before: dict[str, bytes], start: Start
) -> None:
    with start(tmp_path) as qemu:
        nodes = qemu.nodes()
        for instant in INSTANTS:
            if instant in ("qemu.end", "qemu.keep"):
                continue
            client = started(qemu, tmp_path / "killed.vma", instant)
            next(lines(client))
            kill_all(client)
        assert qemu.found().names
        run(qemu.run(tmp_path / "x.vma"))
        if start is not paused:
            qemu.check_clean(nodes)
        assert qemu.nodes() == nodes and list(qemu.fleece.iterdir()) == []
    assert restored(tmp_path / "x.vma", tmp_path / "out") == before
    assert not (tmp_path / "killed.vma").exists()


@pytest.mark.parametrize("start", [storage_daemon, machine])
def test_runs_that_are_killed_at_random(tmp_path: Path, before: dict[str, bytes], start: Start) -> None:
    draw = random.Random()
    with start(tmp_path) as qemu:
        nodes = qemu.nodes()
        for _ in range(6):
            seconds = draw.uniform(0, 0.5)
            client = started(qemu, tmp_path / "killed.vma", "job.error")
            timer = threading.Timer(seconds, client.kill)
            timer.start()
            assert client.wait() == -signal.SIGKILL, seconds
            kill(client)
        until(lambda: qemu.found().names == [])
        run(qemu.run(tmp_path / "x.vma"))
        qemu.check_clean(nodes)
    assert restored(tmp_path / "x.vma", tmp_path / "out") == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("instant", ["job.state", "qemu.image", "qemu.freeze", "copy.read"])
def test_a_run_that_is_cancelled_leaves_nothing(
    tmp_path: Path, before: dict[str, bytes], instant: str, number: int
) -> None:
    with machine(tmp_path) as qemu:
        nodes = qemu.nodes()
        client = started(qemu, tmp_path / "x.vma", instant)
        next(lines(client))
        client.send_signal(number)
        code, said = ended(client)
        assert code == 128 + number
        assert said.splitlines()[-1] == "pybackup: cancelled"
        qemu.check_clean(nodes)
    assert not list(tmp_path.glob("x.vma*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_wait_for_a_monitor_can_be_cancelled(tmp_path: Path, number: int) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "busy.qmp"))
        listener.listen()
        command = [PYBACKUP, "run", f"qmp:{tmp_path}/busy.qmp", str(tmp_path / "x.vma")]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with listener.accept()[0]:
            assert interrupt(client, number) == (128 + number, "pybackup: cancelled\n")


# -- failures --


def test_a_qemu_that_ends_fails_the_backup_at_once(tmp_path: Path, before: dict[str, bytes]) -> None:
    with storage_daemon(tmp_path) as qemu:
        client = started(qemu, tmp_path / "x.vma", "copy.read")
        next(lines(client))
        qemu.process.kill()
        code, said = ended(client)
    assert code == 3 and "Traceback" not in said
    assert "has gone" in said or "ended the connection" in said
    assert not list(qemu.fleece.iterdir()) and not list(tmp_path.glob("x.vma*"))


def test_a_job_that_somebody_ends_makes_no_archive(tmp_path: Path, before: dict[str, bytes]) -> None:
    """What is read afterwards is what the disk is now, and not the instant."""
    with storage_daemon(tmp_path) as qemu:
        nodes = qemu.nodes()
        client = started(qemu, tmp_path / "x.vma", "copy.read")
        next(lines(client))
        qemu.ask("job-cancel", {"id": next(iter(qemu.found().jobs))})
        code, said = ended(client)
        assert code == 3 and "has stopped to save what the guest overwrites on drive" in said
        qemu.check_clean(nodes)
    assert not list(tmp_path.glob("x.vma*"))


def test_images_that_grow_too_large_fail_the_backup_and_not_the_guest(tmp_path: Path, before: dict[str, bytes]) -> None:
    with storage_daemon(tmp_path, guests=True) as qemu:
        nodes = qemu.nodes()
        with Guest(qemu.guests, History(1, list(SIZES), 0, SIZES["b"]), list(SIZES)):
            client = started(qemu, tmp_path / "x.vma", "job.freeze", "--nbd-socket", qemu.guests, "--max-fleece", "3M")
            code, said = ended(client)
        assert code == 5 and "--max-fleece allows 3,145,728" in said
        qemu.check_clean(nodes)
    assert not list(tmp_path.glob("x.vma*"))


def test_a_folder_that_gets_full_fails_the_backup_and_not_the_guest(tmp_path: Path, before: dict[str, bytes]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small filesystem")
    with storage_daemon(tmp_path, guests=True) as qemu:
        nodes = qemu.nodes()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260M", "tmpfs", qemu.fleece], check=True)
        try:
            with Guest(qemu.guests, History(1, list(SIZES), 0, SIZES["b"]), list(SIZES)):
                code, said = ended(started(qemu, tmp_path / "x.vma", "job.freeze", "--nbd-socket", qemu.guests))
            assert code == 5 and "must stay free beside the temporary images" in said
            qemu.check_clean(nodes)
        finally:
            subprocess.run(["umount", "-l", qemu.fleece], check=True)
    assert not list(tmp_path.glob("x.vma*"))


def test_a_suspended_run_wakes_when_the_room_gets_short(tmp_path: Path, before: dict[str, bytes]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small filesystem")
    with machine(tmp_path) as qemu:
        nodes = qemu.nodes()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300M", "tmpfs", qemu.fleece], check=True)
        try:
            client = started(qemu, tmp_path / "x.vma", "copy.read")
            next(lines(client))
            client.send_signal(signal.SIGSTOP)
            (qemu.fleece / "others").write_bytes(bytes(60 << 20))
            code, said = ended(client)
            assert code == 5 and "must stay free beside the temporary images" in said
            (qemu.fleece / "others").unlink()
            qemu.check_clean(nodes)
        finally:
            subprocess.run(["umount", "-l", qemu.fleece], check=True)
    assert not list(tmp_path.glob("x.vma*"))


def test_a_second_run_and_a_foreign_nbd_server_are_refused(tmp_path: Path, before: dict[str, bytes]) -> None:
    with storage_daemon(tmp_path, guests=True) as qemu:
        nodes = qemu.nodes()
        assert "--nbd-socket" in run(qemu.run(tmp_path / "y.vma"), 6)
        qemu.check_clean(nodes)
        client = started(qemu, tmp_path / "x.vma", "job.freeze", "--nbd-socket", qemu.guests)
        next(lines(client))
        second = [PYBACKUP, "run", f"qmp:{qemu.second}", str(tmp_path / "y.vma")]
        assert "another pybackup is backing up the machine" in run(second, 6)
        client.send_signal(signal.SIGINT)
        assert ended(client)[0] == 130
        qemu.check_clean(nodes)
    assert not list(tmp_path.glob("?.vma*"))


def test_a_storage_daemon_that_would_not_survive_is_refused(tmp_path: Path, before: dict[str, bytes]) -> None:
    with storage_daemon(tmp_path, "--object", "iothread,id=io") as qemu:
        if qemu.knows("blockdev-backup", "discard-source"):
            assert run(qemu.run(tmp_path / "x.vma")) == ""
        else:
            assert "has I/O threads" in run(qemu.run(tmp_path / "x.vma"), 3)
        assert qemu.nodes()


def test_it_needs_little_memory(tmp_path: Path, before: dict[str, bytes]) -> None:
    with (tmp_path / "a.raw").open("r+b") as file:
        for number in range(256):
            file.write(random.Random(number).randbytes(1 << 20))
    with storage_daemon(tmp_path) as qemu:
        measure = (
            "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
            " print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", measure, *qemu.run(tmp_path / "x.vma")], capture_output=True, text=True, check=True
        )
    assert int(done.stdout) < 150 << 10
