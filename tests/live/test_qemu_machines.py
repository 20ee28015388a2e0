"""Machines with disks of all kinds, disks that go, and machines that come from another host or leave for one."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import need
from live.processes import ended, info, restored
from live.qemu_processes import Qemu, running

MACHINE = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "64", "-display", "none", "-nodefaults", "-S"]
MIB = 1 << 20


@contextlib.contextmanager
def machine(folder: Path, *options: str) -> Iterator[Qemu]:
    """A paused machine with two monitors."""
    need(MACHINE[0])
    command = [*MACHINE, *options]
    for number in (1, 2):
        command += ["-chardev", f"socket,id=m{number},path={number}.qmp,server=on,wait=off"]
        command += ["-mon", f"m{number},mode=control"]
    with running(folder, command) as qemu:
        yield qemu


def disk(folder: Path, name: str, size: int = MIB) -> bytes:
    content = random.Random(name).randbytes(size)
    (folder / f"{name}.raw").write_bytes(content)
    return content


def drive(name: str, *more: str) -> list[str]:
    return ["-drive", ",".join([f"if=none,id={name},format=raw,file={name}.raw", *more])]


def slow(qemu: Qemu, archive: Path, *options: str) -> subprocess.Popen[str]:
    """A backup that has its instant, and does not come to its end soon."""
    command = qemu.run(archive, "--speed", "4M", "--compress", "none", "--trace", "copy.read", *options)
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert client.stderr is not None
    client.stderr.readline()
    return client


def last_line(said: str) -> str:
    return said.splitlines()[-1]


def test_every_disk_of_the_machines_own_is_backed_up_and_the_rest_is_named(tmp_path: Path) -> None:
    need("qemu-img")
    contents = {name: disk(tmp_path, name) for name in ("hd", "sd", "usb", "nv", "base")}
    contents["pflash0"] = disk(tmp_path, "pflash0", 4 * MIB)
    for name in ("cd", "ro", "lone"):
        disk(tmp_path, name)
    disk(tmp_path, "fl", 1_474_560)
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "over.qcow2"]
    subprocess.run(overlay, cwd=tmp_path, check=True)
    options = ["-drive", "if=pflash,format=raw,file=pflash0.raw", *drive("hd"), "-device", "virtio-blk-pci,drive=hd"]
    options += ["-device", "sdhci-pci", *drive("sd"), "-device", "sd-card,drive=sd", "-device", "qemu-xhci"]
    options += [*drive("usb"), "-device", "usb-storage,drive=usb,removable=on"]
    options += [*drive("nv"), "-device", "nvme,serial=1", "-device", "nvme-ns,drive=nv"]
    options += ["-object", "throttle-group,id=slow,x-iops-total=1000"]
    options += ["-blockdev", "qcow2,node-name=over,file.driver=file,file.filename=over.qcow2"]
    options += ["-blockdev", "throttle,throttle-group=slow,node-name=throttled,file=over"]
    options += ["-device", "virtio-blk-pci,drive=throttled,id=base"]
    options += [*drive("cd", "readonly=on"), "-device", "virtio-scsi-pci", "-device", "scsi-cd,drive=cd"]
    options += ["-device", "ide-cd,id=tray", *drive("ro", "readonly=on"), "-device", "virtio-blk-pci,drive=ro"]
    options += ["-blockdev", "file,node-name=lone,filename=lone.raw"]
    options += [*drive("fl"), "-device", "isa-fdc", "-device", "floppy,drive=fl"]
    with machine(tmp_path, *options) as qemu:
        nodes = qemu.nodes()
        command = qemu.run(tmp_path / "x.vma", "-v", "--json")
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        refused = subprocess.run(qemu.run(tmp_path / "y.vma", "--drive", "cd"), capture_output=True, text=True)
        assert refused.returncode == 2 and "cd is left out: it is a CD-ROM; it has " in refused.stderr
        assert qemu.nodes() == nodes
    left_out = {
        "cd": "it is a CD-ROM",
        "tray": "it is empty (a CD-ROM drive)",
        "ro": "it is read-only",
        "fl": "it is a floppy",
        "lone": "no device of the machine uses it",
    }
    assert {one["name"]: one["reason"] for one in json.loads(done.stdout)["left_out"]} == left_out
    for name, reason in left_out.items():
        assert f"pybackup: note: {name} is not backed up: {reason}\n" in done.stderr
    assert restored(tmp_path / "x.vma", tmp_path / "out") == contents


def test_nothing_is_said_of_what_is_left_out_where_nobody_asks(tmp_path: Path) -> None:
    disk(tmp_path, "hd")
    with machine(tmp_path, *drive("hd"), "-device", "virtio-blk-pci,drive=hd", "-device", "ide-cd") as qemu:
        done = subprocess.run(qemu.run(tmp_path / "x.vma"), capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_folder_that_is_only_called_like_ours_is_left_alone(tmp_path: Path) -> None:
    disk(tmp_path, "hd")
    names = [f"pybackup-{date}" for date in ("20261126", "202611261530")]
    with machine(tmp_path, *drive("hd"), "-device", "virtio-blk-pci,drive=hd") as qemu:
        for name in names:
            (qemu.fleece / name).mkdir()
            (qemu.fleece / name / "monday.vma.zst").write_bytes(b"precious")
        node = {"driver": "null-co", "node-name": "pybackup-20261126-1", "read-zeroes": True}
        qemu.ask("blockdev-add", node)
        for number in range(2):
            done = subprocess.run(qemu.run(tmp_path / f"{number}.vma"), capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
        assert sorted(one.name for one in qemu.fleece.iterdir()) == names
        assert all((qemu.fleece / name / "monday.vma.zst").read_bytes() == b"precious" for name in names)
        assert "pybackup-20261126-1" in qemu.nodes()


# -- disks that go --


def test_a_disk_that_is_unplugged_is_named(tmp_path: Path) -> None:
    """QEMU lets go of a drive with its device."""
    for name in "ab":
        disk(tmp_path, name, 12 * MIB)
    devices = ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=a,id=x", "-device", "scsi-hd,drive=b,id=y"]
    with machine(tmp_path, *drive("a"), *drive("b"), *devices) as qemu:
        client = slow(qemu, tmp_path / "x.vma")
        qemu.ask("device_del", {"id": "y"})
        code, said = ended(client)
        assert code == 3
        told = "disk b was unplugged from the machine of QEMU at"
        assert last_line(said).startswith(f"pybackup: {told}") and "Traceback" not in said
        assert qemu.found().names == []
    assert not list(tmp_path.glob("x.vma*"))


def test_a_disk_that_outlives_its_device_is_backed_up_and_named(tmp_path: Path) -> None:
    content = disk(tmp_path, "a", 8 * MIB)
    options = ["-blockdev", "file,node-name=a,filename=a.raw", "-device", "virtio-scsi-pci"]
    with machine(tmp_path, *options, "-device", "scsi-hd,drive=a,id=x") as qemu:
        client = slow(qemu, tmp_path / "x.vma", "--json")
        qemu.ask("device_del", {"id": "x"})
        out, said = client.communicate(timeout=60)
        assert client.returncode == 0
        assert "pybackup: warning: disk x was unplugged meanwhile; the archive holds it as it was before" in said
        assert json.loads(out)["unplugged"] == ["x"]
    assert restored(tmp_path / "x.vma", tmp_path / "out") == {"x": content}
    assert info(tmp_path / "x.vma")["drives"][0]["name"] == "x"


@pytest.mark.parametrize("command", ["quit", "system_reset"])
def test_a_machine_that_ends_or_is_reset(tmp_path: Path, command: str) -> None:
    content = disk(tmp_path, "a", 8 * MIB)
    with machine(tmp_path, *drive("a"), "-device", "virtio-blk-pci,drive=a") as qemu:
        client = slow(qemu, tmp_path / "x.vma")
        qemu.ask(command)
        code, said = ended(client)
        assert "Traceback" not in said
        if command == "quit":
            assert qemu.process.wait(timeout=60) == 0
            assert code == 3 and ("has gone" in said or "ended the connection" in said or "stopped to save" in said)
            assert list(qemu.fleece.iterdir()) == [] and not list(tmp_path.glob("x.vma*"))
    if command == "system_reset":
        assert code == 0
        assert restored(tmp_path / "x.vma", tmp_path / "out") == {"a": content}


# -- migration --


def test_a_machine_that_waits_for_a_migration_is_left_alone(tmp_path: Path) -> None:
    disk(tmp_path, "a")
    with machine(tmp_path, *drive("a"), "-device", "virtio-blk-pci,drive=a", "-incoming", "defer") as qemu:
        done = subprocess.run(qemu.run(tmp_path / "x.vma"), capture_output=True, text=True, timeout=60)
        assert done.returncode == 6 and "waits for a migration to come in" in done.stderr
        assert list(qemu.fleece.iterdir()) == [] and not list(tmp_path.glob("x.vma*"))


def test_a_backup_gives_way_to_a_migration(tmp_path: Path) -> None:
    disk(tmp_path, "a", 40 * MIB)
    with machine(tmp_path, *drive("a"), "-device", "virtio-blk-pci,drive=a") as qemu:
        nodes = qemu.nodes()
        client = slow(qemu, tmp_path / "x.vma")
        qemu.ask("migrate-set-parameters", {"max-bandwidth": 10_000})
        qemu.ask("migrate", {"uri": f"exec:cat > {tmp_path}/state"})
        code, said = ended(client)
        assert code == 6 and "has begun, and cannot end while a backup runs" in last_line(said)
        assert qemu.ask("query-migrate")["status"] in ("active", "completed")
        assert qemu.nodes() == nodes
        second = subprocess.run(qemu.run(tmp_path / "x.vma"), capture_output=True, text=True, timeout=60)
        assert second.returncode == 6 and "migrated to another host" in second.stderr
        qemu.ask("migrate_cancel")
    assert not list(tmp_path.glob("x.vma*"))
