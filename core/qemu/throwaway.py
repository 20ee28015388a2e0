"""A machine that is thrown away: QEMU on exports of ours, with no network, which ends when we do.

What its disks hold is a guest's, and may be hostile: QEMU may start no other programs and get no other rights, no
network and no file of the host is in it, and what it prints is read with bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

from pybackup.core.errors import PybackupError, RequestError
from pybackup.core.system.child_death import dying_with_us

PROGRAM = "qemu-system-x86_64"
MOST_SATA = 6
"""Disks that a q35's own controller has ports for."""
MOST_SAID = 8192
"""Bytes kept of what QEMU says of itself."""
CHUNK = 4096
_KVM_GET_API_VERSION, _KVM_API_VERSION = 0xAE00, 12
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)
"""Where distributions put UEFI for QEMU: its code, and what its variables are in the beginning."""


class Bus(Enum):
    """How disks are attached."""

    AUTO = "auto"
    """As their names tell, which QEMU's and Proxmox's disks have from their buses; else as VIRTIO."""
    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"


class NotStartedError(PybackupError):
    """QEMU has failed before the machine printed anything."""


@dataclass(frozen=True, slots=True)
class Disk:
    """An export, the drive's name by which it is known, and how it is attached."""

    name: str
    bus: Bus


@dataclass(frozen=True, slots=True)
class MachineRequest:
    """What is started. ``memory`` in bytes; ``vnc``: where QEMU shows its screen, in its words.

    ``window``: on the screen of who asked; with neither, all that firmware and guest print goes to the serial console.
    ``ends_at_reboot``: whether a guest that starts anew ends the machine.
    """

    disks: Sequence[Disk]
    memory: int
    uefi: bool = False
    vnc: str | None = None
    window: bool = False
    ends_at_reboot: bool = False


def bus_of(name: str, asked: Bus) -> Bus:
    """How a drive of that name is attached."""
    if asked is not Bus.AUTO:
        return asked
    for word, bus in (("virtio", Bus.VIRTIO), ("scsi", Bus.SCSI), ("sata", Bus.SATA), ("ide", Bus.SATA)):
        if re.search(rf"(^|[^a-z]){word}\d", name):
            return bus
    return Bus.VIRTIO


def find_qemu() -> str:
    """QEMU's path (RequestError)."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise RequestError(
            f"starting a machine needs {PROGRAM}, which is not installed (Debian's package qemu-system-x86 has it)"
        )
    return found


def find_firmware() -> tuple[str, str]:
    """UEFI's code and variables (RequestError)."""
    for code, variables in _FIRMWARE:
        if os.path.isfile(code) and os.path.isfile(variables):
            return code, variables
    raise RequestError("UEFI needs the firmware OVMF, which is not installed (Debian's package ovmf has it)")


def kvm_is_usable() -> bool:
    """Whether the processor itself can run the guest; else every instruction is translated, which takes longer."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, _KVM_GET_API_VERSION) == _KVM_API_VERSION
    except OSError:
        return False
    finally:
        os.close(fd)


def arguments(request: MachineRequest, socket: str, *, kvm: bool) -> list[str]:
    """Of QEMU (RequestError for what no machine can have). ``socket``: where the disks are exported."""
    has_screen = request.window or request.vnc is not None
    firmware = find_firmware() if request.uefi else None
    out = ["-no-user-config", "-nodefaults", "-name", "pybackup-boot", "-msg", "timestamp=off"]
    out += ["-machine", "q35" if has_screen else "q35,graphics=off", "-accel", "kvm" if kvm else "tcg"]
    out += ["-cpu", "host" if kvm else "max", "-smp", "2" if kvm else "1", "-m", f"{request.memory >> 20}M"]
    # No network, and nothing that a guest could ask for on the host.
    out += ["-nic", "none", "-serial", "stdio", "-monitor", "none"]
    if not request.window:
        out += ["-sandbox", _SANDBOX]
    if has_screen:
        out += ["-vga", "std", "-device", "qemu-xhci", "-device", "usb-tablet"]
    if request.vnc is not None:
        out += ["-vnc", request.vnc]
    elif not request.window:
        out += ["-display", "none"]
    if request.ends_at_reboot:
        out += ["-no-reboot"]
    if firmware is not None:
        out += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={firmware[0]}"]
        out += ["-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={firmware[1]}"]
    return out + _disk_arguments(request.disks, socket)


def _disk_arguments(disks: Sequence[Disk], socket: str) -> list[str]:
    out = []
    if any(disk.bus is Bus.SCSI for disk in disks):
        out += ["-device", "virtio-scsi-pci,id=scsi"]
    ports = 0
    for number, disk in enumerate(disks):
        node = f"disk{number}"
        block = {
            "driver": "nbd",
            "node-name": node,
            "server": {"type": "unix", "path": socket},
            "export": disk.name,
            # What is written is thrown away.
            "cache": {"no-flush": True},
            "discard": "unmap",
        }
        device = {"drive": node, "bootindex": number}
        match disk.bus:
            case Bus.SCSI:
                device |= {"driver": "scsi-hd", "bus": "scsi.0"}
            case Bus.SATA:
                if ports == MOST_SATA:
                    raise RequestError(f"a machine has room for {MOST_SATA} disks on its SATA bus: choose another bus")
                device |= {"driver": "ide-hd", "bus": f"ide.{ports}"}
                ports += 1
            case _:
                device |= {"driver": "virtio-blk-pci"}
        out += ["-blockdev", json.dumps(block), "-device", json.dumps(device)]
    return out


class Machine:
    """A QEMU that runs. Made by machine(). Changing: what it has said of itself."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said = bytearray()
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while part := await self._process.stderr.read(CHUNK):
            self._said += part[: MOST_SAID - len(self._said)]

    async def console(self, take: Callable[[bytes], bool]) -> bool:
        """Hand on what comes through the serial console, until ``take`` is content (True) or the machine has ended.

        NotStartedError, or another PybackupError, with QEMU's reason where it failed.
        """
        assert self._process.stdout is not None
        failure: type[PybackupError] = NotStartedError
        while part := await self._process.stdout.read(CHUNK):
            failure = PybackupError
            if take(part):
                return True
        code = await self._process.wait()
        await self._listener
        if code:
            lines = [line for line in self._said.decode(errors="replace").splitlines() if "warning:" not in line]
            reason = lines[0].removeprefix(f"{PROGRAM}: ") if lines else f"exit status {code}"
            raise failure(f"QEMU has failed: {reason}")
        return False

    async def end(self) -> None:
        """It is thrown away: there is nothing that it would have to finish. Never raises."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._listener


@asynccontextmanager
async def machine(program: str, with_arguments: Sequence[str]) -> AsyncIterator[Machine]:
    """A machine that runs as long as the body does, and never longer than we (PybackupError)."""
    try:
        process = await asyncio.create_subprocess_exec(
            *dying_with_us(program, *with_arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise PybackupError(f"cannot start {program}: {error.strerror or error}") from error
    started = Machine(process)
    try:
        yield started
    finally:
        await started.end()
