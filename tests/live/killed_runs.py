"""`run qmp:` killed at any instant, and what happens to the machine next.

One machine after the other is started, backed up, and the run is killed; then QEMU must do what is asked of it at once,
and in the end nothing of the run is left in it. Used by a test of the suite, with a few kills, and by `make stress`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from conftest import need
from live.processes import until
from live.qemu_processes import Qemu, running

from pybackup.core.qemu.handover import PREFIXES
from pybackup.core.system import watchdog_process
from pybackup.core.system.marked_folder import remove_stale

SIZE = 100 << 20
"""Bytes of each disk, all of them data: a run is to be killed while more is on its way to it than a socket takes."""


class Next(Enum):
    """What follows a kill."""

    NOTHING = "nothing"
    QUIT = "quit"
    SIGTERM = "SIGTERM"
    RUN = "a run"


class Killed(Enum):
    """Who is killed, or suspended."""

    RUN = "the run"
    ALL = "the run and its guardian"
    SUSPENDED = "nobody, but the run is suspended"


@dataclass(frozen=True, slots=True)
class Kind:
    """A QEMU: its command line but for the monitors. Those with an I/O thread serve the exports in it."""

    name: str
    program: str
    options: tuple[str, ...]


def _machine(name: str, *devices: str) -> Kind:
    options = ["-machine", "q35,accel=tcg", "-m", "32", "-display", "none", "-nodefaults", "-S"]
    options += ["-object", "iothread,id=io"]
    for disk in "ab":
        options += ["-drive", f"if=none,id={disk},format=raw,file={disk}.raw"]
    return Kind(name, "qemu-system-x86_64", (*options, *devices))


_BLK = [word for disk in "ab" for word in ("-device", f"virtio-blk-pci,drive={disk}")]
_SCSI = [word for disk in "ab" for word in ("-device", f"scsi-hd,drive={disk}")]
KINDS = (
    _machine("virtio-blk", *_BLK),
    _machine("virtio-blk, iothread", *(word + ",iothread=io" if "," in word else word for word in _BLK)),
    _machine("virtio-scsi", "-device", "virtio-scsi-pci", *_SCSI),
    _machine("virtio-scsi, iothread", "-device", "virtio-scsi-pci,iothread=io", *_SCSI),
    Kind(
        "storage daemon",
        "qemu-storage-daemon",
        tuple(f"--blockdev=raw,node-name={disk},file.driver=file,file.filename={disk}.raw" for disk in "ab"),
    ),
)


@contextlib.contextmanager
def started(folder: Path, kind: Kind) -> Iterator[Qemu]:
    """A QEMU with two disks and two monitors."""
    need(kind.program)
    dash = "--" if kind.program == "qemu-storage-daemon" else "-"
    command = [kind.program, *kind.options]
    for number in (1, 2):
        command += [f"{dash}chardev", f"socket,id=m{number},path={number}.qmp,server=on,wait=off"]
        command += ["--monitor", f"m{number}"] if dash == "--" else ["-mon", f"m{number},mode=control"]
    for disk in "ab":
        path = folder / f"{disk}.raw"
        if not path.exists():
            path.write_bytes(random.Random(disk).randbytes(1 << 20) * (SIZE >> 20))
    with running(folder, command) as qemu:
        yield qemu


def guardians_of(parent: int) -> list[int]:
    """The processes that watch over this one."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_bytes()
            if watchdog_process.__file__.encode() in command and f"for {parent}: ".encode() in command:
                found.append(int(name))
    return found


def kill(client: subprocess.Popen[bytes], who: Killed) -> None:
    """Kill at this instant; what is suspended is killed by who uses this, in the end."""
    client.send_signal(signal.SIGSTOP)  # so that nobody acts between the two kills
    guardians = guardians_of(client.pid)
    if who is Killed.ALL:
        for guardian in guardians:
            os.kill(guardian, signal.SIGKILL)
    if who is not Killed.SUSPENDED:
        client.kill()
        client.wait()


def case(folder: Path, kind: Kind, who: Killed, after: Next, seconds: float, *, incremental: bool = False) -> None:
    """One kill, so many seconds after the run's begin, and what follows; of a run that uses dirty bitmaps or none."""
    for number in (1, 2):
        (folder / f"{number}.qmp").unlink(missing_ok=True)
    with started(folder, kind) as qemu:
        nodes = qemu.nodes()
        options = _base(qemu, folder / "base.vma.zst") if incremental else ["--compress", "none"]
        command = qemu.run("-", "-q", "--speed", "80M", *options)
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(seconds)
            kill(client, who)
            _follow(qemu, nodes, who, after)
        finally:
            client.kill()
            client.communicate()
            until(lambda: not guardians_of(client.pid))
        if qemu.process.poll() is None:
            until(lambda: qemu.found().names == [])
            assert qemu.nodes() == nodes
        if who is Killed.ALL:
            for left in qemu.fleece.iterdir():  # as the next run does
                assert remove_stale(str(left), PREFIXES)
        until(lambda: list(qemu.fleece.iterdir()) == [])


def _base(qemu: Qemu, archive: Path) -> list[str]:
    """An archive from whose instant on QEMU records what changes; the options of a run that is made from it."""
    archive.unlink(missing_ok=True)
    subprocess.run(qemu.run(archive, "-q", "--incremental"), check=True)
    return ["--base", str(archive)]


def _follow(qemu: Qemu, nodes: set[str], who: Killed, after: Next) -> None:
    if after is Next.QUIT:
        qemu.ask("quit")
        _has_ended(qemu.process)
    elif after is Next.SIGTERM:
        qemu.process.terminate()
        _has_ended(qemu.process)
    elif after is Next.RUN and who is not Killed.SUSPENDED:
        done = subprocess.run(qemu.run("/dev/null", "-q", "--force"), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert qemu.nodes() == nodes
    elif who is Killed.RUN:
        until(lambda: qemu.found().names == [])
    elif who is Killed.ALL:
        command = qemu.run("/dev/null", "-q", "--force")
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def _has_ended(process: subprocess.Popen[bytes]) -> None:
    begin = time.monotonic()
    until(lambda: process.poll() is not None)
    assert process.returncode == 0
    assert time.monotonic() - begin < 20
