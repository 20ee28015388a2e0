"""`pybackup boot` with a real QEMU, and a guest of a few bytes that uses its disk through the BIOS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_sector import bootable
from command_line import end, pybackup, start, wait_until

from pybackup.core.errors import RequestError
from pybackup.core.qemu import throwaway
from pybackup.core.qemu.throwaway import Bus, Disk, MachineRequest, arguments, bus_of
from pybackup.core.runs.boot import LONGEST_LINE, Console


@pytest.fixture
def night(need: Callable[..., None], tmp_path: Path) -> Path:
    """A delta of a disk that boots: the full archive has another message."""
    need("qemu-system-x86_64")
    disk = tmp_path / "drive-scsi0.img"
    for number, message in enumerate((b"the night before\r\n", b"hello \x1b[32mfrom\x1b[0m the disk\r\n")):
        disk.write_bytes(bootable(message, 3 << 20))
        done = pybackup("run", "--incremental", f"drive-scsi0={disk}", tmp_path / f"n{number}.vma")
        assert done.code == 0, done.err
    return tmp_path / "n1.vma"


def test_it_tells_whether_a_delta_boots(night: Path) -> None:
    before = night.read_bytes()
    done = pybackup("boot", "--no-kvm", "--json", "--check", "^.*hello from .*disk$", night)
    assert (done.code, done.err) == (0, "")
    report = done.json
    assert report["disks"] == [{"name": "drive-scsi0", "bus": "scsi"}]
    assert (report["booted"], report["accelerator"], report["firmware"]) == (True, "tcg", "bios")
    assert report["matched"].endswith("hello from the disk")
    failed = pybackup("boot", "--no-kvm", "--check", "no such line", "--timeout", "1", "--bus", "sata", night)
    assert (failed.code, failed.out) == (1, b"")
    assert "nothing on the serial console matched 'no such line' within 1 s" in failed.err
    assert night.read_bytes() == before


def children_of(process: int) -> list[int]:
    """QEMU's processes below one of ours."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], check=True, stdout=subprocess.PIPE).stdout.decode()
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, parent, args in rows if int(parent) == process and "pybackup-boot" in args]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_machine_ends_with_us(night: Path, number: signal.Signals) -> None:
    process = start("boot", "--no-kvm", night, env={k: v for k, v in os.environ.items() if "DISPLAY" not in k})
    try:
        _follow(process, number)
    finally:
        process.kill()


def _follow(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    assert process.stdout is not None
    shown = b""
    while b"hello from the disk" not in shown:
        part = os.read(process.stdout.fileno(), 4096)
        assert part
        shown += part
    assert b"\x1b" not in shown
    (machine,) = children_of(process.pid)
    done = end(process, number)
    assert done.code == {signal.SIGINT: 130, signal.SIGKILL: 137}[number]
    wait_until(lambda: not Path(f"/proc/{machine}").exists() or is_zombie(machine), "the end of the machine")


def is_zombie(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"


def test_what_cannot_be_asked(night: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    for options, sentence in (
        (["--check", "("], "is no regular expression"),
        (["--json"], "--json goes only with --check"),
        (["--vnc", ":1", "--check", "x"], "--vnc does not go with --check"),
        (["--check", "x", "--drive", "gone"], "has no drive 'gone'; it has drive-scsi0"),
    ):
        done = pybackup("boot", "--no-kvm", *options, night)
        assert (done.code, sentence in done.err) == (2, True), done.err
    without = pybackup("boot", night, env={**os.environ, "PATH": str(tmp_path / "bin")})
    assert (without.code, "Debian's package qemu-system-x86 has it" in without.err) == (2, True), without.err
    assert pybackup("boot", "--check", "x", tmp_path / "gone.vma").code == 4


def test_a_qemu_that_fails_is_told(night: Path) -> None:
    done = pybackup("boot", "--no-kvm", "--check", "x", "--memory", "900000G", night)
    assert (done.code, "QEMU has failed" in done.err) == (1, True), done.err


def test_without_uefi_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throwaway, "_FIRMWARE", (("/nowhere", "/nowhere"),))
    with pytest.raises(RequestError, match="Debian's package ovmf"):
        arguments(MachineRequest([Disk("a", Bus.VIRTIO)], 1 << 30, uefi=True), "s", kvm=False)


@pytest.mark.parametrize(
    ("name", "bus"),
    [
        ("drive-scsi0", Bus.SCSI),
        ("drive-virtio12", Bus.VIRTIO),
        ("ide0", Bus.SATA),
        ("sata1", Bus.SATA),
        ("sda", Bus.VIRTIO),
        ("myscsi0", Bus.VIRTIO),
    ],
)
def test_the_bus_is_that_of_the_name(name: str, bus: Bus) -> None:
    assert bus_of(name, Bus.AUTO) is bus
    assert bus_of(name, Bus.SATA) is Bus.SATA


def test_no_machine_has_a_network_or_more_disks_than_ports() -> None:
    many = [Disk(f'a,"{number}', Bus.SATA) for number in range(7)]
    words = arguments(MachineRequest(many[:6], 1 << 30), "/run/s,1", kvm=True)
    assert words[words.index("-nic") + 1] == "none"
    assert words[words.index("-m") + 1] == "1024M"
    with pytest.raises(RequestError, match="room for 6 disks"):
        arguments(MachineRequest(many, 1 << 30), "s", kvm=False)


def test_a_console_is_bounded_and_without_what_steers_terminals() -> None:
    import re

    shown: list[str] = []
    last: deque[str] = deque(maxlen=3)
    console = Console(re.compile("log.n:$"), last, shown.append)
    assert not console.take(b"a" * 100_000 + b"\x1b[3")
    assert not console.take(b"1mb\x1bc\x1b[=3h\x07\r\nlogin: x\nlog")
    assert console.take(b"in:")
    assert console.matched == "login:"
    assert list(last)[-1] == "login: x"
    assert max(map(len, last)) <= LONGEST_LINE
    assert "".join(shown) == "a" * 100_000 + "b\nlogin: x\nlogin:"
