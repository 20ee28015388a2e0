"""Backups of guests that have an agent: their filesystems are frozen at the instant, and never longer."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_agent import FakeAgent, fake_agent, late, refuses
from live.nbd_client import Nbd
from live.processes import DEADLINE, Server, call, ended, info, restored, served, until
from live.qemu_processes import Qemu, make_disks, storage_daemon

STATUS, FREEZE, THAW = "guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"
SIZE = 4 << 20
BEFORE, AFTER = b"\x11" * 4096, b"\x22" * 4096


@pytest.fixture(name="agent")
def _agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with fake_agent(tmp_path / "agent.sock") as agent:
        yield agent
        assert not agent.frozen


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture(name="server")
def _server(tmp_path: Path, disk: Path, agent: FakeAgent) -> Iterator[Server]:
    with served(tmp_path, "--guest-agent", agent.path, str(disk)) as server:
        yield server


def writes(agent: FakeAgent, nbd: str, export: str) -> None:
    """The guest writes what it has in memory before it is frozen, and goes on as soon as it is not."""

    def freeze(agent: FakeAgent) -> bytes:
        with Nbd(nbd, export) as guest:
            guest.write(1 << 20, BEFORE)
            guest.flush()
        return agent.carry_out(FREEZE)

    def thaw(agent: FakeAgent) -> bytes:
        with Nbd(nbd, export) as guest:
            guest.write(2 << 20, AFTER)
        return agent.carry_out(THAW)

    agent.instead[FREEZE], agent.instead[THAW] = [freeze], [thaw]


def is_of_the_instant(archive: Path, drive: str, before: bytes) -> None:
    """The archive holds what was written for the freeze, and nothing of what came after it."""
    content = restored(archive, archive.parent / "out")[drive]
    assert content[: 1 << 20] == before[: 1 << 20]
    assert content[1 << 20 : (1 << 20) + 4096] == BEFORE
    assert content[(1 << 20) + 4096 :] == before[(1 << 20) + 4096 :]


def check_told(archive: Path, report: dict[str, Any], reason: str | None) -> None:
    """The report, the archive and what `info` says of it agree."""
    wanted = {"consistency": "filesystem" if reason is None else "crash", "consistency_reason": reason}
    found = info(archive)
    for told in (report, found, {"consistency_reason": None, **found["about"]}):
        assert {key: told[key] for key in wanted} == wanted
    words = f"{wanted['consistency']}-consistent" + (f": {reason}" if reason else "")
    assert f"\nstate    {words}\n" in call("info", str(archive)).stdout


def test_the_disks_of_a_server(server: Server, agent: FakeAgent, disk: Path, tmp_path: Path) -> None:
    before = disk.read_bytes()
    writes(agent, server.nbd, "disk")
    done = call("run", f"serve:{server.control}", str(tmp_path / "x.vma"), "--json", "-v")
    assert done.stderr.endswith(", filesystem-consistent\n")
    assert agent.done == [STATUS, FREEZE, THAW]
    check_told(tmp_path / "x.vma", json.loads(done.stdout), None)
    assert info(tmp_path / "x.vma")["about"]["filesystems"] == 2
    is_of_the_instant(tmp_path / "x.vma", "disk", before)
    assert server.ask("status")["last"]["consistency"] == "filesystem"
    assert call("ctl", server.control, "status").stdout.endswith(": done\n         filesystem-consistent\n")
    # And again: the agent's channel is free.
    call("run", f"serve:{server.control}", str(tmp_path / "y.vma"))
    assert info(tmp_path / "y.vma")["consistency"] == "filesystem"


def test_a_server_whose_guest_has_no_agent(tmp_path: Path, disk: Path) -> None:
    reason = f"cannot connect to a guest agent at {tmp_path}/agent.sock: No such file or directory"
    with served(tmp_path, "--guest-agent", str(tmp_path / "agent.sock"), str(disk)) as server:
        done = call("run", f"serve:{server.control}", str(tmp_path / "x.vma"), "--json")
        assert done.stderr == f"pybackup: warning: the archive is only crash-consistent: {reason}\n"
        check_told(tmp_path / "x.vma", json.loads(done.stdout), reason)
        assert server.ask("status")["last"]["consistency_reason"] == reason
        assert f": done\n         crash-consistent: {reason}\n" in call("ctl", server.control, "status").stdout


def test_nobody_asked_for_an_agent(tmp_path: Path, disk: Path) -> None:
    """Disks in use are crash-consistent; nothing is known of a file."""
    with served(tmp_path, str(disk)) as server:
        done = call("run", f"serve:{server.control}", str(tmp_path / "x.vma"), "--json")
        assert done.stderr == ""
        found = json.loads(done.stdout)
        assert (found["consistency"], found["consistency_reason"]) == ("crash", None)
    assert "\nstate    crash-consistent\n" in call("info", str(tmp_path / "x.vma")).stdout
    done = call("run", str(disk), str(tmp_path / "y.vma"), "--json")
    assert json.loads(done.stdout)["consistency"] is None
    assert info(tmp_path / "y.vma")["consistency"] is None
    assert "state" not in call("info", str(tmp_path / "y.vma")).stdout
    said = call("run", str(disk), str(tmp_path / "z.vma"), "--guest-agent", "x.sock", code=2).stderr
    assert "--guest-agent goes with a source qmp:SOCKET" in said


def test_a_server_that_is_killed_thaws(tmp_path: Path, disk: Path, agent: FakeAgent) -> None:
    with served(tmp_path, "--guest-agent", agent.path, str(disk)) as server:

        def killed(agent: FakeAgent) -> bytes:
            answer = agent.carry_out(FREEZE)
            server.process.kill()
            return answer

        agent.instead[FREEZE] = [killed]
        call("run", f"serve:{server.control}", str(tmp_path / "x.vma"), code=3)
        until(lambda: THAW in agent.done and not agent.frozen)
        server.process.wait()
    assert not (tmp_path / "x.vma").exists()


def test_a_client_that_goes_while_the_guest_freezes(tmp_path: Path, server: Server, agent: FakeAgent) -> None:
    """The backup has ended before it began, and the guest goes on when it has frozen."""
    arrived, in_time = threading.Event(), threading.Event()

    def told_and_late(agent: FakeAgent) -> bytes:
        arrived.set()
        return late(FREEZE, in_time)(agent)

    agent.instead[FREEZE] = [told_and_late]
    client = server.start_client(str(tmp_path / "x.vma"))
    assert arrived.wait(DEADLINE)
    client.kill()
    client.wait()
    in_time.set()
    until(lambda: THAW in agent.done and not agent.frozen and server.job() is None)
    call("run", f"serve:{server.control}", str(tmp_path / "y.vma"))
    assert info(tmp_path / "y.vma")["consistency"] == "filesystem"


# -- a running QEMU --


@pytest.fixture(name="qemu")
def _qemu(tmp_path: Path) -> Iterator[tuple[Qemu, dict[str, bytes]]]:
    before = make_disks(tmp_path)
    with storage_daemon(tmp_path, guests=True) as qemu:
        nodes = qemu.nodes()
        yield qemu, before
        until(lambda: qemu.nodes() == nodes)


def command(qemu: Qemu, agent: FakeAgent, archive: Path, *options: str) -> list[str]:
    return qemu.run(archive, "--nbd-socket", qemu.guests, "--guest-agent", agent.path, *options)


def test_the_disks_of_a_qemu(qemu: tuple[Qemu, dict[str, bytes]], agent: FakeAgent, tmp_path: Path) -> None:
    machine, before = qemu
    writes(agent, machine.guests, "a")
    done = subprocess.run(command(machine, agent, tmp_path / "x.vma", "--json"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert agent.done == [STATUS, FREEZE, THAW]
    check_told(tmp_path / "x.vma", json.loads(done.stdout), None)
    is_of_the_instant(tmp_path / "x.vma", "a", before["a"])


def test_an_agent_that_refuses(qemu: tuple[Qemu, dict[str, bytes]], agent: FakeAgent, tmp_path: Path) -> None:
    agent.instead[FREEZE] = [refuses("Command guest-fsfreeze-freeze has been disabled")]
    done = subprocess.run(command(qemu[0], agent, tmp_path / "x.vma", "--json"), capture_output=True, text=True)
    reason = f"the guest agent at {agent.path} refuses {FREEZE}: Command guest-fsfreeze-freeze has been disabled"
    assert (done.returncode, done.stderr) == (0, f"pybackup: warning: the archive is only crash-consistent: {reason}\n")
    check_told(tmp_path / "x.vma", json.loads(done.stdout), reason)
    assert restored(tmp_path / "x.vma", tmp_path / "out") == qemu[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_ends_while_the_guest_is_frozen(
    qemu: tuple[Qemu, dict[str, bytes]], agent: FakeAgent, tmp_path: Path, number: int
) -> None:
    processes: list[subprocess.Popen[str]] = []

    def told(agent: FakeAgent) -> bytes:
        answer = agent.carry_out(FREEZE)
        processes[0].send_signal(number)
        return answer

    agent.instead[FREEZE] = [told]
    # The folder of a killed run is the next one's to remove.
    line = command(qemu[0], agent, tmp_path / "x.vma")
    processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    code, said = ended(processes[0])
    assert code == (-9 if number == signal.SIGKILL else 128 + number), said
    until(lambda: THAW in agent.done and not agent.frozen)
    assert not (tmp_path / "x.vma").exists()
    if number == signal.SIGKILL:
        call("run", f"qmp:{qemu[0].monitor}", str(tmp_path / "y.vma"), "--nbd-socket", qemu[0].guests)


def test_nothing_of_it_stays_in_the_process_list(server: Server, agent: FakeAgent, tmp_path: Path) -> None:
    call("run", f"serve:{server.control}", str(tmp_path / "x.vma"))
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    assert children == []
