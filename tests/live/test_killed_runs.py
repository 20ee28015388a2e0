"""A run that is killed, or suspended, never keeps a machine from anything. `make stress` does this a hundred times."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.killed_runs import KINDS, Killed, Next, case, guardians_of, kill, started
from live.nbd_client import Nbd
from live.processes import until
from live.qemu_processes import Qemu, make_disks, storage_daemon

ORDER = [(Killed.ALL, Next.QUIT), (Killed.RUN, Next.RUN), (Killed.ALL, Next.SIGTERM), (Killed.SUSPENDED, Next.QUIT)]
"""The hardest for QEMU first."""


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With disks that are made once."""
    folder = tmp_path_factory.mktemp("kills")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[kind.name for kind in KINDS])
def test_a_machine_obeys_whoever_was_killed(folder: Path, number: int) -> None:
    seconds = random.Random().uniform(0.4, 2.5)
    who, after = ORDER[number % len(ORDER)]
    print(f"after {seconds} s")
    case(folder, KINDS[number], who, after, seconds)


def begun(qemu: Qemu) -> subprocess.Popen[bytes]:
    """A run that reads, and does not come to its end by itself."""
    command = qemu.run("-", "-q", "--speed", "1M", "--trace", "copy.read")
    client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert client.stderr is not None
    client.stderr.readline()
    return client


def test_the_guardian_waits_for_the_run_and_ends_with_it(folder: Path) -> None:
    with started(folder, KINDS[4]) as qemu:
        client = subprocess.Popen(qemu.run("-", "-q"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert client.stdout is not None
        client.stdout.read(1 << 16)
        assert len(guardians_of(client.pid)) == 1
        client.communicate()
        assert client.returncode == 0
        assert guardians_of(client.pid) == []


def test_the_monitor_is_free_when_the_guardian_has_gone(folder: Path) -> None:
    with started(folder, KINDS[1]) as qemu:
        nodes = qemu.nodes()
        client = begun(qemu)
        assert qemu.found().names
        client.kill()
        client.communicate()
        # The guardian holds the first monitor, so whoever comes there finds nothing of the run.
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(qemu.monitor)
            sock.settimeout(60)
            assert b"QMP" in sock.recv(4096)
            assert qemu.found().names == []
        until(lambda: not guardians_of(client.pid))
        assert qemu.nodes() == nodes


def test_who_comes_by_another_monitor_waits_for_the_guardian(folder: Path) -> None:
    with started(folder, KINDS[3]) as qemu:
        client = begun(qemu)
        client.kill()
        client.communicate()
        qemu.monitor = qemu.second
        done = subprocess.run(qemu.run("/dev/null", "-q", "--force"), capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_signals_to_all_leave_the_guardian_to_its_work(folder: Path) -> None:
    """As systemd ends a unit: SIGTERM to every process, SIGKILL to those that stay too long."""
    with started(folder, KINDS[0]) as qemu:
        client = begun(qemu)
        for one in (*guardians_of(client.pid), client.pid):
            os.kill(one, signal.SIGTERM)
        client.communicate()
        assert client.returncode == 143
        assert qemu.found().names == [] and guardians_of(client.pid) == []


@pytest.mark.parametrize("iothread", [False, True], ids=["", "iothread"])
def test_a_server_that_is_shared_goes_on_for_its_guests(tmp_path: Path, iothread: bool) -> None:
    make_disks(tmp_path)
    with storage_daemon(tmp_path, guests=True) as qemu:
        if iothread:
            if not qemu.knows("blockdev-backup", "discard-source"):
                pytest.skip("needs a QEMU whose storage daemon survives a backup beside an I/O thread")
            qemu.ask("object-add", {"qom-type": "iothread", "id": "io"})
            export = {"type": "nbd", "id": "x", "node-name": "a", "name": "x", "iothread": "io"}
            qemu.ask("block-export-add", export)
        nodes = qemu.nodes()
        client = Nbd(qemu.guests, "a")
        command = qemu.run("-", "-q", "--speed", "1M", "--trace", "copy.read", "--nbd-socket", qemu.guests)
        for who in (Killed.RUN, Killed.ALL):
            run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            assert run.stderr is not None
            run.stderr.readline()
            kill(run, who)
            run.communicate()
            client.write(0, b"\x01" * 65536)
            if who is Killed.RUN:
                until(lambda: qemu.found().names == [])
        command = qemu.run("/dev/null", "-q", "--force", "--nbd-socket", qemu.guests)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        client.write(0, b"\x02" * 65536)
        client.close()
        assert qemu.nodes() == nodes
