"""Nights of a domain of libvirt: each archive equals the disks, whatever becomes of checkpoints in between."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live.killed_runs import guardians_of
from live.libvirt_daemon import Daemon, Disk, Domain, daemon, make_image
from live.processes import call, ended, restored, until

SIZES = {"vda": (6 << 20) + 66_048, "vdb": 5 << 20, "vdc": 3 << 20}
FORMS = {"vda": "qcow2", "vdb": "qcow2", "vdc": "raw"}


@pytest.fixture(name="libvirt", scope="module")
def _libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("libvirt")) as one:
        yield one


class Nights:
    """A domain, what its disks hold, and its archives."""

    def __init__(self, domain: Domain, folder: Path) -> None:
        self.domain, self.folder, self.fleece = domain, folder, folder / "fleece"
        self.fleece.mkdir()
        self.model = {disk.target: bytearray(SIZES[disk.target]) for disk in domain.disks}
        self.number = 0
        self._random = random.Random(13)

    def write(self, target: str, offset: int, length: int) -> None:
        self.domain.io_all([self._write(target, offset, length)])

    def _write(self, target: str, offset: int, length: int) -> tuple[str, str]:
        """What the guest is to be told, which the model knows already."""
        pattern = self._random.randrange(256)
        self.model[target][offset : offset + length] = bytes([pattern]) * length
        return target, f"write -P {pattern} {offset} {length}"

    def write_some(self) -> None:
        commands = []
        for target, size in SIZES.items():
            for _ in range(2):
                length = self._random.choice([512, 4096, 70_000])
                commands.append(self._write(target, self._random.randrange(0, size - length, 512), length))
        self.domain.io_all(commands)

    def command(self, *options: str) -> list[str]:
        self.number += 1
        archive = self.folder / f"{self.domain.name}-{self.number:02}.vma.zst"
        timed = ["--incremental", "--time", str(self.number * 1000), "--json"]
        return self.domain.run(archive, self.fleece, *timed, *options)

    def run(self, *options: str) -> dict[str, tuple[str, str | None]]:
        """A night: its archive equals the model; the way of each drive, and why it was no better."""
        command = self.command(*options)
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        self.check(Path(command[3]))
        assert list(self.fleece.iterdir()) == []
        return {one["name"]: (one["way"], one["why"]) for one in told["ways"]}

    def check(self, archive: Path) -> None:
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        call("restore", str(archive), str(out) + "/", "--force")
        assert {one.stem: one.read_bytes() for one in out.iterdir()} == {
            target: bytes(content) for target, content in self.model.items()
        }


@pytest.fixture(name="nights")
def _nights(libvirt: Daemon, tmp_path: Path) -> Iterator[Nights]:
    disks = [Disk(target, tmp_path / f"{target}.img", form) for target, form in FORMS.items()]
    for disk in disks:
        make_image(disk.path, disk.form, SIZES[disk.target])
    try:
        domain = libvirt.define("web", disks)
        domain.start()
        yield Nights(domain, tmp_path)
    finally:
        libvirt.forget()


def ways(told: dict[str, tuple[str, str | None]]) -> str:
    """By the first letter of each, in order: full, bitmap, digest."""
    return "".join(way[0] for way, _ in told.values())


def test_ten_nights_switched_off_and_on_in_between(nights: Nights) -> None:
    found = []
    for night in range(10):
        if nights.domain.state == "paused":
            nights.write_some()
        found.append(ways(nights.run()))
        if night in (3, 6):
            nights.domain.stop()
        if night in (4, 6):
            nights.domain.start()
    # A night on which it is switched off has no checkpoint of its own, and the next relies on the one before.
    assert found == ["fff"] + ["bbd"] * 9
    assert len(nights.domain.checkpoints()) == 1


def test_a_lost_resized_or_foreign_record_costs_a_comparison_and_nothing_else(nights: Nights) -> None:
    domain = nights.domain
    domain.virsh("checkpoint-create-as", "theirs", "--diskspec", "vda", "--diskspec", "vdb,checkpoint=no")
    nights.write_some()
    nights.run()
    nights.write_some()
    (ours,) = [name for name in domain.checkpoints() if name != "theirs"]
    domain.virsh("checkpoint-delete", ours, "--metadata")
    told = nights.run()
    assert ways(told) == "ddd" and told["vda"][1] == "libvirt has no record of its changes since the parent archive"
    domain.virsh("blockresize", "vdb", "--size", "6M")
    nights.model["vdb"] += bytes(1 << 20)
    nights.write("vdb", 5 << 20, 4096)
    told = nights.run()
    assert told["vda"][0] == "bitmap" and told["vdb"][0] == "digest" and "had 5,242,880 in" in str(told["vdb"][1])
    assert ways(nights.run()) == "bbd"
    assert "theirs" in domain.checkpoints() and len(domain.checkpoints()) == 2


def test_a_disk_that_was_restored_over_leaves_no_checkpoint_that_nobody_can_remove(nights: Nights) -> None:
    nights.run()
    nights.write_some()
    nights.domain.stop()
    (checkpoint,) = nights.domain.checkpoints()
    subprocess.run(["qemu-img", "bitmap", "--remove", nights.domain.disks[0].path, checkpoint], check=True)
    nights.domain.start()
    assert ways(nights.run())[0] == "d"
    assert checkpoint not in nights.domain.checkpoints()
    assert ways(nights.run())[0] == "b"


def test_a_machine_that_was_killed_leaves_no_record_to_rely_on(nights: Nights) -> None:
    nights.write_some()
    nights.run()
    nights.write_some()
    for target in SIZES:  # what a guest has not flushed may be lost
        nights.domain.io(target, "flush")
    for process in filter(str.isdecimal, os.listdir("/proc")):
        if "qemu-system" in (command := _command(process)) and str(nights.folder) in command:
            os.kill(int(process), signal.SIGKILL)
    until(lambda: nights.domain.state == "shut off")
    told = nights.run()
    assert ways(told) == "ddd"
    nights.domain.start()
    nights.write_some()
    told = nights.run()
    assert ways(told) == "ddd" and "record of changes" in str(told["vda"][1])
    nights.write_some()
    assert ways(nights.run()) == "bbd"


def _command(process: str) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def test_a_domain_defined_anew_begins_anew_and_snapshots_are_left_their_images(nights: Nights) -> None:
    domain = nights.domain
    nights.write_some()
    nights.run()
    definition = nights.folder / "web.xml"
    domain.stop()
    definition.write_text(domain.virsh("dumpxml"))
    domain.virsh("undefine", "--checkpoints-metadata")
    domain.daemon.virsh("define", str(definition))
    assert ways(nights.run()) == "ddd"
    domain.start()
    nights.write_some()
    assert ways(nights.run()) == "ddd"
    domain.virsh("snapshot-create-as", "over", "--disk-only", "--no-metadata", "--diskspec", "vdc,snapshot=no")
    nights.write_some()
    assert ways(nights.run()) == "bbd"  # libvirt looks at the bitmaps of what lies below, too
    domain.stop()
    told = nights.run()
    assert ways(told) == "ddd" and "several files" in str(told["vda"][1])


def test_records_are_forgotten_on_demand(nights: Nights) -> None:
    domain = nights.domain
    forget = ["run", "--forget", "libvirt:web", "--connect", domain.daemon.uri]
    assert call(*forget).stdout == "libvirt:web records no changes for pybackup\n"
    command = nights.command("-v")
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr
    assert f"`pybackup {shlex.join(forget)}` drops that" in said
    domain.virsh("checkpoint-create-as", "theirs", "--diskspec", "vda", "--diskspec", "vdb,checkpoint=no")
    domain.stop()
    assert "switched off, and libvirt removes none then" in call(*forget, code=6).stderr
    domain.start()
    assert "vda, vdb: the record of what changed since 1970-01-01 00:16:40 UTC" in call(*forget).stdout
    assert domain.checkpoints() == ["theirs"]
    assert ways(nights.run()) == "ddd"


def test_internal_snapshots_can_be_reverted_to(libvirt: Daemon, tmp_path: Path) -> None:
    make_image(tmp_path / "a.qcow2", "qcow2", 1 << 20, "write -P 7 0 1M")
    (tmp_path / "fleece").mkdir()
    try:
        domain = libvirt.define("snapped", [Disk("vda", tmp_path / "a.qcow2", "qcow2")])
        domain.virsh("snapshot-create-as", "before")
        domain.start()
        command = domain.run(tmp_path / "x.vma.zst", tmp_path / "fleece", "--incremental", "--json")
        told = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
        assert "internal snapshots" in told["unrecorded"][0]["reason"]
        assert domain.checkpoints() == []
        domain.stop()
        domain.virsh("snapshot-revert", "before")
    finally:
        libvirt.forget()


def test_snapshots_of_which_libvirt_does_not_know_are_not_relied_past(libvirt: Daemon, tmp_path: Path) -> None:
    """`qemu-img snapshot -a` changes the disk, and no record: with a checkpoint the second night would be wrong."""
    image = tmp_path / "a.qcow2"
    make_image(image, "qcow2", 1 << 20, "write -P 7 0 1M")
    (tmp_path / "fleece").mkdir()
    try:
        domain = libvirt.define("snapped", [Disk("vda", image, "qcow2")])
        subprocess.run(["qemu-img", "snapshot", "-c", "before", str(image)], check=True)
        domain.start()
        domain.io("vda", "write -P 8 64k 64k")
        command = domain.run(tmp_path / "x.vma.zst", tmp_path / "fleece", "--incremental", "--json")
        told = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
        assert "internal snapshots" in told["unrecorded"][0]["reason"]
        assert domain.checkpoints() == []
        domain.stop()
        subprocess.run(["qemu-img", "snapshot", "-a", "before", str(image)], check=True)
        domain.start()
        command = domain.run(tmp_path / "y.vma.zst", tmp_path / "fleece", "--incremental")
        subprocess.run(command, capture_output=True, timeout=60, check=True)
        assert restored(tmp_path / "y.vma.zst", tmp_path / "out") == {"vda": bytes([7]) * (1 << 20)}
    finally:
        libvirt.forget()


INSTANTS = ["libvirt.begin", "libvirt.open", "copy.read", "archive.finish", "libvirt.keep"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("with_guardian", [False, True], ids=["", "with its guardian"])
def test_killed_at_every_step_the_next_night_is_right(nights: Nights, with_guardian: bool) -> None:
    nights.write_some()
    nights.run()
    (before,) = nights.domain.checkpoints()
    for instant in INSTANTS:
        nights.write_some()
        client = subprocess.Popen(
            nights.command("--trace", instant, "--speed", "1M"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert client.stderr is not None and client.stderr.readline()
        client.send_signal(signal.SIGSTOP)
        for process in guardians_of(client.pid) if with_guardian else ():
            os.kill(process, signal.SIGKILL)
        client.kill()
        ended(client)
        if not with_guardian:
            # libvirt itself may hold a domain for half a minute after a virsh of ours was killed.
            until(lambda: not nights.domain.has_job() and list(nights.fleece.iterdir()) == [], 200.0)
            if instant != "libvirt.keep":
                assert nights.domain.checkpoints() == [before]
        assert nights.domain.state == "paused"
    nights.write_some()
    assert nights.run()["vda"][0] in ("bitmap", "digest")
    assert len(nights.domain.checkpoints()) == 1
    nights.write_some()
    assert ways(nights.run()) == "bbd"
