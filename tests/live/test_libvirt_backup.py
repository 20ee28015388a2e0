"""Domains of a real libvirtd: their disks as they were at one instant; and nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.killed_runs import guardians_of
from live.libvirt_daemon import Daemon, Disk, Domain, daemon, fake_virsh, make_image
from live.processes import PYBACKUP, call, ended, info, restored, until

SIZES = {"vda": 12 << 20, "vdb": (8 << 20) + 66_048}
BLOCK = 4096


@pytest.fixture(name="libvirt", scope="module")
def _libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("libvirt")) as one:
        yield one


@pytest.fixture(name="domain")
def _domain(libvirt: Daemon, tmp_path: Path) -> Iterator[Domain]:
    """A domain with a qcow2 disk in an I/O thread, and a raw one."""
    make_image(tmp_path / "a.qcow2", "qcow2", SIZES["vda"], "write -P 7 0 3M", "write -P 8 5M 2M")
    make_image(tmp_path / "b.raw", "raw", SIZES["vdb"], "write -P 9 1M 3M", "write -P 1 8M 66048")
    (tmp_path / "fleece").mkdir()
    disks = [Disk("vda", tmp_path / "a.qcow2", "qcow2", io_thread=True), Disk("vdb", tmp_path / "b.raw", "raw")]
    (tmp_path / "cd.iso").write_bytes(bytes(1 << 20))
    cd = f"<disk type='file' device='cdrom'><source file='{tmp_path}/cd.iso'/><target dev='sda' bus='sata'/></disk>"
    try:
        yield libvirt.define("web", disks, cd)
    finally:
        libvirt.forget()


def run(command: list[str], code: int = 0, environment: dict[str, str] | None = None) -> str:
    """Run to the end; what was said on stderr."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def started(domain: Domain, archive: Path, fleece: Path, trace: str, *options: str) -> subprocess.Popen[str]:
    """A backup so slow that it does not come to its end, at the first event of this name."""
    command = domain.run(archive, fleece, "--trace", trace, "--speed", "64K", *options)
    client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert client.stderr is not None
    client.stderr.readline()
    return client


class Guest(threading.Thread):
    """Writes block after block, in turns to two disks, until it is stopped; ``done`` have been answered."""

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        self._domain, self._stopping, self.done = domain, threading.Event(), 0

    def run(self) -> None:
        command = ["virsh", "--connect", self._domain.daemon.uri]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
            assert shell.stdin is not None and shell.stdout is not None
            while not self._stopping.is_set():
                target, offset = ("vda", "vdb")[self.done % 2], self.done // 2 * BLOCK
                io = f'qemu-io -d /machine/peripheral/ua-{target}/virtio-backend \\"write -P 170 {offset} {BLOCK}\\"'
                shell.stdin.write(f'qemu-monitor-command {self._domain.name} --hmp "{io}"\necho written\n')
                shell.stdin.flush()
                while "written" not in (line := shell.stdout.readline()):
                    assert line
                self.done += 1
            shell.stdin.close()
            shell.stdout.read()

    def __enter__(self) -> Guest:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()


def writes_in(disks: dict[str, bytes]) -> int:
    """How many of the guest's writes the disks hold; AssertionError if that is no one instant."""
    count = {}
    for target, content in disks.items():
        blocks = [content[at : at + BLOCK] == b"\xaa" * BLOCK for at in range(0, 4 << 20, BLOCK)]
        count[target] = blocks.index(False)
        assert not any(blocks[count[target] :])
    assert 0 <= count["vda"] - count["vdb"] <= 1, count
    return sum(count.values())


def test_both_disks_are_of_one_instant_while_the_guest_writes(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    fleece = tmp_path / "fleece"
    with Guest(domain) as guest:
        until(lambda: guest.done > 20)
        begin = guest.done
        run(domain.run(tmp_path / "x.vma", fleece, "--speed", "20M"))
        end = guest.done
    domain.check_clean(fleece)
    assert begin <= writes_in(restored(tmp_path / "x.vma", tmp_path / "out")) <= end + 1
    assert writes_in(domain.content()) == guest.done


@pytest.mark.parametrize("is_on", [True, False], ids=["running", "switched off"])
def test_the_whole_machine_is_in_the_archive(domain: Domain, tmp_path: Path, is_on: bool) -> None:
    before = domain.content()
    if is_on:
        domain.start()
    run(domain.run(tmp_path / "{name}.vma", tmp_path / "fleece"))
    assert list((tmp_path / "fleece").iterdir()) == []
    assert restored(tmp_path / "web.vma", tmp_path / "out") == before
    told = info(tmp_path / "web.vma")["about"]
    assert told["domain"] == {"name": "web", "uuid": domain.virsh("domuuid")}
    assert told.get("consistency") == ("crash" if is_on else None)
    definition = call("config", str(tmp_path / "web.vma"), "libvirt-domain.xml").stdout
    assert "<name>web</name>" in definition and str(tmp_path / "a.qcow2") in definition
    assert domain.state == ("paused" if is_on else "shut off")


def test_disks_are_chosen_and_the_rest_is_told_of(domain: Domain, tmp_path: Path) -> None:
    before, fleece = domain.content(), tmp_path / "fleece"
    domain.start()
    run(domain.run(tmp_path / "one.vma", fleece, "--drive", "vdb"))
    assert restored(tmp_path / "one.vma", tmp_path / "out") == {"vdb": before["vdb"]}
    done = subprocess.run(domain.run(tmp_path / "all.vma", fleece, "--json"), capture_output=True, text=True)
    assert json.loads(done.stdout)["left_out"] == [{"name": "sda", "reason": "it is a CD-ROM"}]
    assert "sda is left out: it is a CD-ROM" in run(domain.run(tmp_path / "no.vma", fleece, "--drive", "sda"), 2)
    assert "the domain has no disk 'x'; it has vda, vdb" in run(domain.run(tmp_path / "no", fleece, "--drive", "x"), 2)
    assert "only for you" not in run([PYBACKUP, "run", "libvirt:nobody", str(tmp_path / "n"), *_at(domain)], 3)


def _at(domain: Domain) -> list[str]:
    return ["--connect", domain.daemon.uri]


def test_the_variables_of_a_firmware_become_a_drive(libvirt: Daemon, tmp_path: Path) -> None:
    (tmp_path / "vars.fd").write_bytes(bytes(range(256)) * 1000)
    make_image(tmp_path / "a.raw", "raw", 1 << 20, "write -P 7 0 1M")
    loader = tmp_path / "code.fd"
    loader.write_bytes(bytes(1 << 20))
    firmware = f"<loader readonly='yes' type='pflash'>{loader}</loader><nvram>{tmp_path / 'vars.fd'}</nvram>"
    try:
        domain = libvirt.define("uefi", [Disk("vda", tmp_path / "a.raw", "raw")], system=firmware)
        run(domain.run(tmp_path / "x.vma", tmp_path))
    finally:
        libvirt.forget()
    found = restored(tmp_path / "x.vma", tmp_path / "out")
    assert found == {"vda": bytes([7]) * (1 << 20), "nvram": bytes(range(256)) * 1000}


def test_every_domain_has_its_archive_and_one_that_fails_stops_none(domain: Domain, tmp_path: Path) -> None:
    make_image(tmp_path / "c.raw", "raw", 1 << 20, "write -P 7 0 1M")
    make_image(tmp_path / "d.raw", "raw", 1 << 20, "write -P 8 0 1M")
    for name, file in (("a broken", "c.raw"), ("zoo", "d.raw")):
        domain.daemon.define(name, [Disk("vda", tmp_path / file, "raw")])
    (tmp_path / "c.raw").unlink()
    domain.start()
    command = [PYBACKUP, "run", "--all", "libvirt:", str(tmp_path / "{name}-{now:%Y}.vma"), "--json", *_at(domain)]
    done = subprocess.run([*command, "--time", "0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("pybackup: domain a broken: ") and lines[1:] == [
        "pybackup: 1 of 3 domains failed: a broken"
    ]
    told = {one["domain"]: one for one in json.loads(done.stdout)["domains"]}
    assert {name: one["exit_code"] for name, one in told.items()} == {"a broken": 3, "web": 0, "zoo": 0}
    assert {path.name for path in tmp_path.glob("*.vma")} == {"web-1970.vma", "zoo-1970.vma"}
    assert restored(tmp_path / "zoo-1970.vma", tmp_path / "out") == {"vda": b"\x08" * (1 << 20)}
    command = [*command, "--time", "99999999", "--incremental"]  # what is told of one of several names it
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
    assert "pybackup: domain zoo: vda: read whole, and compared with the parent's digests" in said


# -- nothing stays behind --


def kill(client: subprocess.Popen[str], *, guardian: bool) -> None:
    client.send_signal(signal.SIGSTOP)
    for process in guardians_of(client.pid) if guardian else ():
        os.kill(process, signal.SIGKILL)
    client.kill()
    ended(client)


INSTANTS = ["job.state", "libvirt.begin", "libvirt.open", "copy.read"]
"""And "libvirt.folder", in make stress: until the job has begun, a guardian waits 35 s for one that may come late."""
CLEARED = 200.0
"""Seconds: libvirt itself may hold a domain for half a minute after a virsh of ours was killed."""


@pytest.mark.timeout(400)
def test_a_killed_run_is_cleared_away_and_the_domain_lives(domain: Domain, tmp_path: Path) -> None:
    """One disk has an I/O thread: where QEMU sees a client of such a disk leave, several of its releases end."""
    domain.start()
    before, fleece = domain.content(), tmp_path / "fleece"
    for instant in INSTANTS:
        client = started(domain, tmp_path / "killed.vma", fleece, instant)
        kill(client, guardian=False)
        until(lambda: not domain.has_job() and list(fleece.iterdir()) == [], CLEARED)
        assert domain.state == "paused"
    run(domain.run(tmp_path / "x.vma", fleece))
    domain.check_clean(fleece)
    assert restored(tmp_path / "x.vma", tmp_path / "out") == before
    assert not list(tmp_path.glob("killed*.vma"))


def test_the_next_run_clears_away_what_a_killed_guardian_could_not(libvirt: Daemon, tmp_path: Path) -> None:
    make_image(tmp_path / "a.qcow2", "qcow2", 8 << 20, "write -P 7 0 8M")
    (fleece := tmp_path / "fleece").mkdir()
    try:
        domain = libvirt.define("plain", [Disk("vda", tmp_path / "a.qcow2", "qcow2")])
        domain.start()
        kill(started(domain, tmp_path / "killed.vma", fleece, "copy.read"), guardian=True)
        assert domain.has_job()
        run(domain.run(tmp_path / "x.vma", fleece))
        domain.check_clean(fleece)
    finally:
        libvirt.forget()


def test_a_job_that_begins_after_the_death_of_its_run_is_ended(domain: Domain, tmp_path: Path) -> None:
    """libvirt does what it was asked for, whoever asked, and when it can."""
    domain.start()
    fleece = tmp_path / "fleece"
    late = f"[ $command = backup-begin ] && {{ cat > {tmp_path}/job; touch {tmp_path}/asked; sleep 60; }}"
    environment = fake_virsh(tmp_path, late)
    client = subprocess.Popen(domain.run(tmp_path / "x.vma", fleece), env=environment, stderr=subprocess.DEVNULL)
    until(lambda: (tmp_path / "asked").exists())
    client.kill()
    client.wait()
    domain.virsh("backup-begin", str(tmp_path / "job"))
    until(lambda: not domain.has_job() and list(fleece.iterdir()) == [])
    assert domain.state == "paused"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("instant", ["libvirt.folder", "copy.read"])
def test_a_run_that_is_cancelled_leaves_nothing(domain: Domain, tmp_path: Path, instant: str, number: int) -> None:
    domain.start()
    client = started(domain, tmp_path / "x.vma", tmp_path / "fleece", instant)
    client.send_signal(number)
    code, said = ended(client)
    assert code == 128 + number and said.splitlines()[-1] == "pybackup: cancelled"
    domain.check_clean(tmp_path / "fleece")
    assert not list(tmp_path.glob("x.vma*"))


def test_a_job_of_somebody_else_is_left_alone(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    (tmp_path / "job").write_text(
        f"<domainbackup mode='pull'><server transport='unix' socket='{tmp_path}/nbd'/></domainbackup>"
    )
    domain.virsh("backup-begin", str(tmp_path / "job"))
    said = run(domain.run(tmp_path / "x.vma", tmp_path / "fleece"), 6)
    assert "has a backup job of somebody else" in said
    assert domain.has_job()


def test_a_second_run_waits_for_the_first(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    fleece = tmp_path / "fleece"
    client = started(domain, tmp_path / "x.vma", fleece, "copy.read")
    assert "another pybackup is backing up domain web" in run(domain.run(tmp_path / "y.vma", fleece), 6)
    client.send_signal(signal.SIGINT)
    assert ended(client)[0] == 130
    domain.check_clean(fleece)


# -- trouble --


def test_a_job_that_somebody_ends_makes_no_archive(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    client = started(domain, tmp_path / "x.vma", tmp_path / "fleece", "copy.read")
    domain.virsh("domjobabort")
    code, said = ended(client)
    assert code == 3 and "Traceback" not in said
    domain.check_clean(tmp_path / "fleece")
    assert not list(tmp_path.glob("x.vma*"))


def test_a_daemon_that_is_started_anew_ends_no_backup(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    before, fleece = domain.content(), tmp_path / "fleece"
    once = f"""
[ $command = backup-begin ] && touch {tmp_path}/begun
if [ $command = backup-dumpxml ] && [ -e {tmp_path}/begun ] && [ ! -e {tmp_path}/told ]; then
    touch {tmp_path}/told; echo 'error: failed to connect to the hypervisor' >&2; exit 1
fi"""
    run(domain.run(tmp_path / "x.vma", fleece), environment=fake_virsh(tmp_path, once))
    assert (tmp_path / "told").exists()
    assert restored(tmp_path / "x.vma", tmp_path / "out") == before
    client = started(domain, tmp_path / "y.vma", fleece, "copy.read")
    domain.daemon.kill_and_start()
    assert domain.has_job()
    client.send_signal(signal.SIGINT)
    assert ended(client)[0] == 130
    domain.check_clean(fleece)


def test_a_disk_with_a_block_job_is_busy(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    domain.virsh("blockcopy", "vda", "--dest", str(tmp_path / "copy"), "--transient-job", "--bandwidth", "1")
    assert "domain web is busy" in run(domain.run(tmp_path / "x.vma", tmp_path / "fleece", "--incremental"), 6)
    domain.virsh("blockjob", "vda", "--abort")
    domain.check_clean(tmp_path / "fleece")


def test_a_domain_that_is_switched_off_meanwhile_fails_the_backup(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    client = started(domain, tmp_path / "x.vma", tmp_path / "fleece", "copy.read")
    domain.stop()
    code, said = ended(client)
    assert code == 3 and "Traceback" not in said
    assert domain.state == "shut off" and list((tmp_path / "fleece").iterdir()) == []
    assert not list(tmp_path.glob("x.vma*"))


def test_a_domain_that_is_switched_off_is_locked_while_it_is_read(domain: Domain, tmp_path: Path) -> None:
    client = started(domain, tmp_path / "x.vma", tmp_path / "fleece", "copy.read", "--snapshot", "none")
    domain.virsh("start", code=1)
    client.send_signal(signal.SIGINT)
    assert ended(client)[0] == 130
    domain.start()


def test_scratch_images_that_grow_too_large_fail_the_backup_and_not_the_guest(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    client = started(domain, tmp_path / "x.vma", tmp_path / "fleece", "copy.read", "--max-fleece", "3M")
    domain.io("vda", "write -P 99 0 7M")
    code, said = ended(client)
    assert code == 5 and "--max-fleece allows 3,145,728" in said
    domain.check_clean(tmp_path / "fleece")
    assert not list(tmp_path.glob("x.vma*"))


@contextlib.contextmanager
def small_filesystem(folder: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_without_room_fails_the_backup_before_it_begins(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    with small_filesystem(tmp_path / "fleece", "200M"):
        said = run(domain.run(tmp_path / "x.vma", tmp_path / "fleece"), 5)
        assert "must stay free beside the scratch images" in said
        domain.check_clean(tmp_path / "fleece")


# -- consistency --

AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


def agent(log: Path, freeze: str = "echo 'Froze 2 filesystem(s)'") -> str:
    """A virsh behind which an agent answers; every word of it is logged."""
    return f"""
case $command in
domfsfreeze) echo freeze >> {log}; {freeze}; exit ;;
domfsthaw) echo thaw >> {log}; echo 'Thawed 2 filesystem(s)'; exit ;;
backup-begin) echo instant >> {log} ;;
dumpxml) $real "$@" | sed "s#name='org.qemu.guest_agent.0' state='disconnected'#name='org.qemu.guest_agent.0'"`
    `" state='connected'#"; exit ;;
esac"""


@pytest.fixture(name="with_agent")
def _with_agent(libvirt: Daemon, tmp_path: Path) -> Iterator[Domain]:
    make_image(tmp_path / "a.qcow2", "qcow2", 1 << 20, "write -P 7 0 1M")
    (tmp_path / "fleece").mkdir()
    try:
        domain = libvirt.define("agent", [Disk("vda", tmp_path / "a.qcow2", "qcow2")], AGENT)
        domain.start()
        yield domain
    finally:
        libvirt.forget()


def test_filesystems_are_frozen_for_the_instant(with_agent: Domain, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = fake_virsh(tmp_path, agent(log))
    assert run(with_agent.run(tmp_path / "x.vma", tmp_path / "fleece"), environment=environment) == ""
    assert log.read_text().split() == ["freeze", "instant", "thaw"]
    about = info(tmp_path / "x.vma")["about"]
    assert (about["consistency"], about["filesystems"]) == ("filesystem", 2)


def test_a_freeze_that_fails_is_told_and_thawed(with_agent: Domain, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = fake_virsh(tmp_path, agent(log, "echo 'error: the agent is ill' >&2; exit 1"))
    command = with_agent.run(tmp_path / "x.vma", tmp_path / "fleece")
    assert "only crash-consistent: the agent is ill" in run(command, environment=environment)
    assert log.read_text().split() == ["freeze", "instant", "thaw"]
    command = with_agent.run(tmp_path / "y.vma", tmp_path / "fleece", "--freeze", "require")
    assert "could not be frozen: the agent is ill" in run(command, 3, environment=environment)
    assert log.read_text().split()[3:] == ["freeze", "thaw"]
    assert not (tmp_path / "y.vma").exists()
    run(with_agent.run(tmp_path / "z.vma", tmp_path / "fleece", "--freeze", "never"), environment=environment)
    assert log.read_text().split()[5:] == ["instant"]
    with_agent.check_clean(tmp_path / "fleece")


def test_the_freeze_of_somebody_else_stays(with_agent: Domain, tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = "Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state"
    environment = fake_virsh(tmp_path, agent(log, f"echo 'error: {said}' >&2; exit 1"))
    command = with_agent.run(tmp_path / "x.vma", tmp_path / "fleece")
    assert f"only crash-consistent: {said}" in run(command, environment=environment)
    assert log.read_text().split() == ["freeze", "instant"]


def test_who_is_killed_while_it_freezes_has_thawed(with_agent: Domain, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = fake_virsh(tmp_path, agent(log, "sleep 60"))
    command = with_agent.run(tmp_path / "x.vma", tmp_path / "fleece")
    client = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    until(log.exists)
    client.kill()
    client.wait()
    until(lambda: log.read_text().split() == ["freeze", "thaw"])


def test_without_an_agent_a_freeze_that_is_required_is_refused(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    command = domain.run(tmp_path / "x.vma", tmp_path / "fleece", "--freeze", "require")
    assert "domain is not running" in run(command, 3)
    domain.virsh("resume")
    assert "QEMU guest agent is not configured" in run(command, 3)
    domain.virsh("suspend")
    domain.check_clean(tmp_path / "fleece")


# -- and back again --


def test_a_domain_is_defined_again_with_other_paths_as_the_manual_says(domain: Domain, tmp_path: Path) -> None:
    before, archive = domain.content(), tmp_path / "x.vma.zst"
    run(domain.run(archive, tmp_path / "fleece"))
    (folder := tmp_path / "web2").mkdir()
    call("restore", str(archive), f"vda={folder}/vda.qcow2", f"vdb={folder}/vdb.raw")
    edits = ["s#<name>web<#<name>web2<#", "/<uuid>/d", "/<mac address=/d"]
    edits += [f"s#{tmp_path}/a.qcow2#{folder}/vda.qcow2#", f"s#{tmp_path}/b.raw#{folder}/vdb.raw#"]
    definition = call("config", str(archive), "libvirt-domain.xml").stdout
    command = ["sed", *(word for edit in edits for word in ("-e", edit))]
    edited = subprocess.run(command, input=definition, capture_output=True, text=True, check=True).stdout
    (tmp_path / "web2.xml").write_text(edited)
    domain.daemon.virsh("define", str(tmp_path / "web2.xml"))
    domain.daemon.domains.append("web2")
    disks = [Disk("vda", folder / "vda.qcow2", "qcow2"), Disk("vdb", folder / "vdb.raw", "raw")]
    again = Domain(domain.daemon, "web2", disks)
    assert again.content() == before
    again.start()
    assert again.virsh("domuuid") != domain.virsh("domuuid")
    assert [disk.split()[-1] for disk in again.virsh("domblklist").splitlines()][:2] == [str(d.path) for d in disks]
