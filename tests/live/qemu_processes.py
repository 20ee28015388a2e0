"""Real QEMUs with a monitor: storage daemons and machines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from conftest import need
from live.processes import DEADLINE, PYBACKUP, until

from pybackup.core.qemu.leftovers import Found, look
from pybackup.core.qemu.monitor import Monitor

T = TypeVar("T")
SIZES = {"a": 12 << 20, "b": (8 << 20) + 66_048, "c": 9 << 20}
"""A raw disk, a qcow2, and a qcow2 with a backing file."""


class Qemu:
    """A process with one or two monitors, a folder for temporary images, and perhaps an NBD server for guests."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder, self.process = folder, process
        self.monitor, self.second = str(folder / "1.qmp"), str(folder / "2.qmp")
        self.guests = str(folder / "guests.sock")
        self.fleece = folder / "fleece"
        self.fleece.mkdir(exist_ok=True)

    def run(self, archive: Path | str, *options: str) -> list[str]:
        """The command line of a backup."""
        return [PYBACKUP, "run", f"qmp:{self.monitor}", str(archive), "--fleece", str(self.fleece), *options]

    def _with_monitor(self, work: Callable[[Monitor], Awaitable[T]]) -> T:
        async def worked() -> T:
            monitor = await Monitor.connect(self.second)
            try:
                return await work(monitor)
            finally:
                await monitor.close()

        return asyncio.run(worked())

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        return self._with_monitor(lambda monitor: monitor.execute(command, arguments))

    def qemu_io(self, *lines: str) -> None:
        """What guests of a machine do, by a device and a command of qemu-io each."""

        async def done(monitor: Monitor) -> None:
            for line in lines:
                said = await monitor.execute("human-monitor-command", {"command-line": f"qemu-io {line}"})
                assert "rror" not in said, said

        self._with_monitor(done)

    def knows(self, command: str, argument: str) -> bool:
        async def asked(monitor: Monitor) -> bool:
            return monitor.knows(command, argument)

        return self._with_monitor(asked)

    def found(self) -> Found:
        return self._with_monitor(look)

    def nodes(self) -> set[str]:
        return {node["node-name"] for node in self.ask("query-named-block-nodes")}

    def check_clean(self, nodes: set[str]) -> None:
        """Nothing of a backup is left, neither in QEMU nor in the folder."""
        found = self.found()
        assert (found.names, found.descriptors) == ([], {})
        assert self.nodes() == nodes
        assert self.ask("query-jobs") == []
        assert list(self.fleece.iterdir()) == []
        # The files have no names, so only their descriptors tell whether they are still there.
        until(lambda: not any(str(self.fleece) in name for name in self._open_files()))

    def _open_files(self) -> Iterator[str]:
        for fd in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                yield os.readlink(fd)


def make_disks(folder: Path) -> dict[str, bytes]:
    """The images a.raw, b.qcow2 and c.qcow2, and what they hold."""
    need("qemu-img", "qemu-io")
    calls = [
        ["qemu-img", "create", "-q", "-f", "raw", "a.raw", str(SIZES["a"])],
        ["qemu-io", "-f", "raw", "-c", "write -q -P 7 0 3M", "-c", "write -q -P 8 5M 2M", "a.raw"],
        ["qemu-img", "create", "-q", "-f", "qcow2", "b.qcow2", str(SIZES["b"])],
        ["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 1M 3M", "-c", "write -q -P 1 8M 66048", "b.qcow2"],
        ["qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", str(7 << 20)],
        ["qemu-io", "-f", "qcow2", "-c", "write -q -P 3 0 6M", "base.qcow2"],
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "c.qcow2", str(SIZES["c"])],
        ["qemu-io", "-f", "qcow2", "-c", "write -q -P 4 2M 70000", "-c", "write -q -z 5M 64K", "c.qcow2"],
    ]
    for call in calls:
        subprocess.run(call, cwd=folder, check=True)
    return read_disks(folder)


def read_disks(folder: Path) -> dict[str, bytes]:
    """What the images hold, as qemu-img reads them."""
    disks = {}
    for name, image in (("a", "a.raw"), ("b", "b.qcow2"), ("c", "c.qcow2")):
        out = folder / f"{name}.out"
        form = image.partition(".")[2]
        subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", str(folder / image), str(out)], check=True)
        disks[name] = out.read_bytes()
        out.unlink()
    return disks


@contextlib.contextmanager
def running(folder: Path, command: list[str]) -> Iterator[Qemu]:
    """Start a QEMU whose monitors are the character devices m1 and m2; only by who says so, or kills it, may it end."""
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until(lambda: process.poll() is not None or _listens(folder / "2.qmp"))
        yield Qemu(folder, process)
    finally:
        alive = process.poll() is None
        if alive:
            process.terminate()
        said = _last_words(process)
        assert alive or process.returncode in (0, -9), said


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """What it said on stderr; one that does not end is killed, and so fails the test."""
    try:
        return process.communicate(timeout=DEADLINE)[1].decode()
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def _monitors(option: str) -> list[str]:
    return [
        word
        for number in (1, 2)
        for word in (f"{option}chardev", f"socket,id=m{number},path={number}.qmp,server=on,wait=off")
    ]


@contextlib.contextmanager
def storage_daemon(folder: Path, *options: str, guests: bool = False) -> Iterator[Qemu]:
    """A qemu-storage-daemon with the disks of make_disks(); with ``guests`` it offers them over NBD."""
    need("qemu-storage-daemon")
    command = ["qemu-storage-daemon", *_monitors("--"), "--monitor", "m1", "--monitor", "m2", *options]
    command += ["--blockdev", "raw,node-name=a,file.driver=file,file.filename=a.raw"]
    for name in "bc":
        command += ["--blockdev", f"qcow2,node-name={name},file.driver=file,file.filename={name}.qcow2"]
    if guests:
        command += ["--nbd-server", "addr.type=unix,addr.path=guests.sock"]
        for name in SIZES:
            command += ["--export", f"nbd,id=guest-{name},node-name={name},name={name},writable=on"]
    with running(folder, command) as qemu:
        qemu.ask("query-block-exports")  # answered when all that it was started with is there
        yield qemu


@contextlib.contextmanager
def machine(folder: Path, *options: str) -> Iterator[Qemu]:
    """A machine with the disks of make_disks(), one of them in an I/O thread, and a CD-ROM and a read-only disk."""
    need("qemu-system-x86_64")
    for name in ("cd.iso", "ro.raw"):
        (folder / name).write_bytes(bytes(1 << 20))
    command = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "64", "-display", "none", "-nodefaults"]
    command += [*_monitors("-"), "-mon", "m1,mode=control", "-mon", "m2,mode=control", "-name", "guest", *options]
    command += ["-object", "iothread,id=io", "-device", "virtio-scsi-pci"]
    command += ["-blockdev", "file,node-name=a-file,filename=a.raw"]
    command += ["-device", "virtio-blk-pci,drive=a-file,id=a,iothread=io"]
    command += ["-drive", "if=none,id=b,file=b.qcow2,format=qcow2", "-device", "scsi-hd,drive=b"]
    command += ["-drive", "if=virtio,id=c,file=c.qcow2,format=qcow2"]
    command += ["-drive", "if=none,id=cd,file=cd.iso,format=raw,media=cdrom", "-device", "ide-cd,drive=cd"]
    command += ["-drive", "if=none,id=ro,file=ro.raw,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=ro"]
    with running(folder, command) as qemu:
        yield qemu
