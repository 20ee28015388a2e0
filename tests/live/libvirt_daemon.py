"""A real libvirtd of our own, with domains of type qemu, which ends with us and leaves nothing on the machine.

It runs in namespaces of its own, where all its folders, and a list of users that has those it asks for, are mounted
over the machine's; its socket, and the disks, are reached from outside. A shell is the first process in there, for
somebody has to take note of the end of machines. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import need
from live.processes import DEADLINE, PYBACKUP, until

EMULATOR = "/usr/bin/qemu-system-x86_64"
_MOUNTED = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
_START = """
set -e
cd "$1"
for pair in $2; do mkdir -p "${pair%%:*}" "${pair#*:}"; mount --bind "${pair%%:*}" "${pair#*:}"; done
mount --bind passwd /etc/passwd
mount --bind group /etc/group
libvirtd --pid-file "$1/libvirtd.pid" &
wait || true
while [ -e "$1/again" ]; do rm "$1/again"; libvirtd --pid-file "$1/libvirtd.pid" & wait $! || true; done
"""
_QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
"""
_DAEMON_CONF = 'auth_unix_ro = "none"\nauth_unix_rw = "none"\nunix_sock_group = "root"\n'


@dataclass(frozen=True)
class Disk:
    """A disk of a domain, whose image is there."""

    target: str
    path: Path
    form: str
    more: str = ""
    io_thread: bool = False

    @property
    def xml(self) -> str:
        thread = " iothread='1'" if self.io_thread else ""
        return (
            f"<disk type='file' device='disk'><driver name='qemu' type='{self.form}'{thread}/>"
            f"<source file='{self.path}'/><target dev='{self.target}' bus='virtio'/>"
            f"<alias name='ua-{self.target}'/>{self.more}</disk>"
        )


@dataclass
class Daemon:
    """A libvirtd that answers."""

    folder: Path
    uri: str
    domains: list[str] = field(default_factory=list)

    def virsh(self, *arguments: str, code: int = 0) -> str:
        command = ["virsh", "--quiet", "--connect", self.uri, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stderr
        return done.stdout.strip()

    def define(self, name: str, disks: Sequence[Disk], more: str = "", system: str = "") -> Domain:
        threads = "<iothreads>1</iothreads>" if any(disk.io_thread for disk in disks) else ""
        xml = (
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>{threads}"
            f"<os><type arch='x86_64' machine='q35'>hvm</type>{system}</os><features><acpi/></features><devices>"
            f"<emulator>{EMULATOR}</emulator>{''.join(disk.xml for disk in disks)}{more}</devices></domain>"
        )
        path = self.folder / f"{name}.xml"
        path.write_text(xml)
        self.virsh("define", str(path))
        self.domains.append(name)
        return Domain(self, name, list(disks))

    def kill_and_start(self) -> None:
        """As a crash, or an upgrade, which the machines survive."""
        (self.folder / "again").touch()
        pids = [int(pid) for pid in filter(str.isdecimal, os.listdir("/proc")) if self._is_daemon(pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        command = ["virsh", "--connect", self.uri, "uri"]
        until(
            lambda: (
                not (self.folder / "again").exists() and subprocess.run(command, capture_output=True).returncode == 0
            )
        )

    def _is_daemon(self, pid: str) -> bool:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            return words[:3] == ["libvirtd", "--pid-file", f"{self.folder}/libvirtd.pid"]
        return False

    def forget(self) -> None:
        """End and undefine every domain."""
        for name in self.domains:
            with contextlib.suppress(AssertionError):
                self.virsh("destroy", name)
            self.virsh("undefine", name, "--checkpoints-metadata", "--snapshots-metadata", "--managed-save", "--nvram")
        self.domains.clear()


@dataclass
class Domain:
    """A domain, which is switched off until it is started."""

    daemon: Daemon
    name: str
    disks: list[Disk]

    def virsh(self, command: str, *arguments: str, code: int = 0) -> str:
        return self.daemon.virsh(command, self.name, *arguments, code=code)

    def start(self) -> None:
        """Paused: there is nothing to boot, and a paused machine takes no time of the processor."""
        self.virsh("start", "--paused")

    def stop(self) -> None:
        self.virsh("destroy")

    @property
    def state(self) -> str:
        return self.virsh("domstate")

    def io(self, target: str, command: str) -> None:
        """What the guest does to its disk, in qemu-io's words."""
        self.io_all([(target, command)])

    def io_all(self, commands: Sequence[tuple[str, str]]) -> None:
        """What the guest does to its disks, one after the other, through one virsh."""
        lines = [
            f"""qemu-monitor-command {self.name} --hmp 'qemu-io -d /machine/peripheral/ua-{target}/virtio-backend"""
            f""" "{command}"'"""
            for target, command in commands
        ]
        assert "rror" not in (said := self.daemon.virsh("; ".join(lines))), said

    def has_job(self) -> bool:
        command = ["virsh", "--connect", self.daemon.uri, "backup-dumpxml", self.name]
        return subprocess.run(command, capture_output=True, timeout=DEADLINE).returncode == 0

    def checkpoints(self) -> list[str]:
        return self.virsh("checkpoint-list", "--name").split()

    def check_clean(self, fleece: Path) -> None:
        """Nothing of a backup is left, and the domain is as it was."""
        assert self.state == "paused"
        assert not self.has_job()
        assert list(fleece.iterdir()) == []

    def run(self, archive: Path | str, fleece: Path, *options: str) -> list[str]:
        """The command line of a backup."""
        where = ["--connect", self.daemon.uri, "--fleece", str(fleece)]
        return [PYBACKUP, "run", f"libvirt:{self.name}", str(archive), *where, *options]

    def content(self) -> dict[str, bytes]:
        """What the disks hold, as qemu-img reads them, whoever uses them."""
        found = {}
        for disk in self.disks:
            out = self.daemon.folder / f"{disk.target}.out"
            options = f"driver={disk.form},force-share=on,file.filename={disk.path}"
            subprocess.run(["qemu-img", "convert", "--image-opts", options, "-O", "raw", str(out)], check=True)
            found[disk.target] = out.read_bytes()
            out.unlink()
        return found


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[Daemon]:
    """Start a libvirtd; it and all its machines have ended behind the body."""
    need("libvirtd", "virsh", "unshare", "setpriv", "qemu-img", EMULATOR)
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces")
    for name in _MOUNTED:
        (folder / name).mkdir()
    (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
    (folder / "etc" / "libvirtd.conf").write_text(_DAEMON_CONF)
    _write_users(folder)
    pairs = " ".join(f"{name}:{path}" for name, path in _MOUNTED.items())
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    command += ["--mount-proc", "--propagation", "private", "sh", "-c", _START, "sh", str(folder), pairs]
    socket = folder / "run" / "libvirt-sock"
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        until(lambda: process.poll() is not None or socket.exists())
        assert process.poll() is None, (folder / "said").read_text()
        yield Daemon(folder, f"qemu+unix:///system?socket={socket}")
    finally:
        process.kill()
        process.wait()


def _write_users(folder: Path) -> None:
    """Those of the machine, and what QEMU's driver looks for even where it runs QEMU as root."""
    for file, added in (
        ("passwd", {"libvirt-qemu": "x:64055:64055::/:/usr/sbin/nologin"}),
        ("group", {"libvirt-qemu": "x:64055:", "kvm": "x:64054:"}),
    ):
        lines = Path("/etc", file).read_text().splitlines()
        known = {line.partition(":")[0] for line in lines}
        lines += [f"{name}:{rest}" for name, rest in added.items() if name not in known]
        (folder / file).write_text("\n".join(lines) + "\n")


def make_image(path: Path, form: str, size: int, *commands: str) -> None:
    """An image, written to by qemu-io."""
    subprocess.run(["qemu-img", "create", "-q", "-f", form, str(path), str(size)], check=True)
    if commands:
        words = [word for command in commands for word in ("-c", command)]
        subprocess.run(["qemu-io", "-f", form, *words, str(path)], check=True, stdout=subprocess.DEVNULL)


def fake_virsh(folder: Path, script: str) -> dict[str, str]:
    """An environment in which virsh is a shell script; in it $real is the real one, and $command the command."""
    real = shutil.which("virsh")
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    path = bin_folder / "virsh"
    find = "for word; do case $word in --*|*://*) ;; *) command=$word; break;; esac; done\n"
    path.write_text(f'#!/bin/sh\nreal={real}\n{find}{script}\nexec $real "$@"\n')
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
