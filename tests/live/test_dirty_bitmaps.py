"""QEMU's dirty bitmaps tell all that has changed, whatever happens between two nights; or it is known why not."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from conftest import need
from live.guests import Guest, History
from live.killed_runs import guardians_of
from live.nbd_client import Nbd
from live.processes import call, until
from live.qemu_processes import SIZES, Qemu, machine, make_disks, running, storage_daemon
from live.recorded_nights import Night, Series, kept
from live.test_qemu_machines import machine as machine_of

from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.qemu.bitmap_names import BitmapName


@pytest.fixture(name="before")
def _before(tmp_path: Path) -> dict[str, bytes]:
    return make_disks(tmp_path)


def write(qemu: Qemu, device: str, offset: int, length: int, pattern: int = 99) -> None:
    """A write of a machine's guest."""
    qemu.qemu_io(f'{device} "write -P {pattern} {offset} {length}"')


def write_all(qemu: Qemu, offset: int, length: int, pattern: int) -> None:
    """The same on every disk."""
    qemu.qemu_io(*(f'{device} "write -P {pattern} {offset} {length}"' for device in DEVICES.values()))


DEVICES = {"a": "-d a/virtio-backend", "b": "b", "c": "c"}


def test_twenty_nights_with_guests_that_write_all_the_while(tmp_path: Path, before: dict[str, bytes]) -> None:
    names = list(SIZES)
    with storage_daemon(tmp_path, guests=True) as qemu:
        nodes = qemu.nodes()
        series = Series(qemu, shared=True)
        history = History(1, names, 0, SIZES["b"])
        with Guest(qemu.guests, history, names) as guest:
            for number in range(20):
                done = guest.done
                night = series.night()
                assert night.said == []
                if number:
                    assert all(changed >= 0 for changed in series.check().values())
        assert done <= history.instant(before, {name: told.content for name, told in night.disks.items()})
        qemu.check_clean(nodes)
        assert {name: len(bitmaps) for name, bitmaps in kept(qemu).items()} == dict.fromkeys(names, 1)


def test_only_what_a_machine_wrote_is_told(tmp_path: Path, before: dict[str, bytes]) -> None:
    with machine(tmp_path) as qemu:
        series = Series(qemu)
        series.night()
        for name, device in DEVICES.items():
            write(qemu, device, 3 << 16, 100)
            write(qemu, device, SIZES[name] - 512, 512)
        series.night(lambda: write(qemu, "b", 7 << 16, 512))
        assert series.check() == {"a": 2, "b": 2, "c": 2}
        series.night()
        assert series.check() == {"a": 0, "b": 1, "c": 0}


LARGE = 256 << 20


class Bursts(threading.Thread):
    """Writes to one cluster after the other, as fast as can be, while it is let."""

    def __init__(self, client: Nbd) -> None:
        super().__init__()
        self.client, self.let, self.ended = client, threading.Event(), False

    def run(self) -> None:
        for number in itertools.count():
            self.let.wait()
            if self.ended:
                return
            self.client.write(number * CLUSTER_SIZE % LARGE, number.to_bytes(8) * 64)

    def __enter__(self) -> Bursts:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.let.set()
        self.join()


def test_guests_that_write_from_another_thread_of_qemus(tmp_path: Path) -> None:
    """There the actions of a transaction are no instant by themselves."""
    with (tmp_path / "x.raw").open("wb") as file:
        file.truncate(LARGE)
    options = ["-drive", "if=none,id=x,file=x.raw,format=raw", "-object", "iothread,id=busy"]
    options += ["-device", "virtio-blk-pci,drive=x,iothread=busy,share-rw=on"]
    with machine_of(tmp_path, *options) as qemu:
        server = {"addr": {"type": "unix", "data": {"path": qemu.guests}}}
        qemu.ask("nbd-server-start", server)
        node = qemu.ask("query-block")[0]["inserted"]["node-name"]
        export = {"type": "nbd", "id": "guest", "node-name": node, "name": "x", "writable": True, "iothread": "busy"}
        qemu.ask("block-export-add", export)
        series = Series(qemu, shared=True)
        client = Nbd(qemu.guests, "x")
        with Bursts(client) as guest:
            for number in range(4):
                series.night(guest.let.clear, just_before=guest.let.set)
                if number:
                    assert 0 < series.check()["x"] < LARGE // CLUSTER_SIZE
        # Without its export QEMU bears that a client goes: see keep_connection() of core/qemu/leftovers.py.
        qemu.ask("block-export-del", {"id": "guest", "mode": "hard"})
        until(lambda: qemu.ask("query-block-exports") == [])
        client.close()


# -- what happens between two nights --


def test_a_restart_is_survived_by_the_bitmaps_of_qcow2_alone(tmp_path: Path, before: dict[str, bytes]) -> None:
    with machine(tmp_path) as qemu:
        series = Series(qemu)
        series.night()
        write(qemu, "b", 0, 1)
    with machine(tmp_path) as series.qemu:
        write(series.qemu, "c", 0, 1)
        series.night()
        assert series.check() == {"a": -1, "b": 1, "c": 1}
        assert "ends with QEMU" in series.nights[-1].disks["a"].why
        series.night()
        assert series.check() == {"a": 0, "b": 0, "c": 0}


def test_a_killed_qemu_leaves_inconsistent_bitmaps(tmp_path: Path, before: dict[str, bytes]) -> None:
    with machine(tmp_path) as qemu:
        series = Series(qemu)
        series.night()
    with machine(tmp_path) as qemu:  # has read the bitmaps from the images
        write(qemu, "b", 0, 1)
        qemu.process.kill()
    with machine(tmp_path) as series.qemu:
        series.night()
        assert series.check() == {"a": -1, "b": -1, "c": -1}
        assert "inconsistent" in series.nights[-1].disks["b"].why
        write(series.qemu, "b", 0, 1)
        series.night()
        assert series.check() == {"a": 0, "b": 1, "c": 0}
        assert [len(names) for names in kept(series.qemu).values()] == [1, 1, 1]


def bitmap_of(qemu: Qemu, name: str) -> dict[str, str]:
    """Node and name of the only bitmap of a drive, for a command."""
    ((node, bitmap),) = [
        (node["node-name"], bitmap["name"])
        for node in qemu.ask("query-named-block-nodes", {"flat": True})
        for bitmap in node.get("dirty-bitmaps", ())
        if bitmap["name"].endswith(f"-{name}")
    ]
    return {"node": node, "name": bitmap}


def test_what_others_do_to_bitmaps_or_disks_is_noticed(tmp_path: Path, before: dict[str, bytes]) -> None:
    with storage_daemon(tmp_path) as qemu:
        series = Series(qemu)
        series.night()
        qemu.ask("block-dirty-bitmap-remove", bitmap_of(qemu, "a"))
        qemu.ask("block-dirty-bitmap-disable", bitmap_of(qemu, "b"))
        qemu.ask("block_resize", {"node-name": "c", "size": 10 << 20})
        night = series.night()
        assert {name: told.changed for name, told in night.disks.items()} == dict.fromkeys("abc")
        assert "no record" in night.disks["a"].why
        assert "switched off" in night.disks["b"].why
        assert "it has 10,485,760 bytes, and had 9,437,184" in night.disks["c"].why
        series.night()
        assert series.check() == {"a": 0, "b": 0, "c": 0}
        used = bitmap_of(qemu, "a")
        qemu.ask("nbd-server-start", {"addr": {"type": "unix", "data": {"path": qemu.guests}}})
        qemu.ask("block-dirty-bitmap-disable", used)
        export = {"type": "nbd", "id": "x", "node-name": "a", "name": "x", "bitmaps": [used["name"]]}
        qemu.ask("block-export-add", export)
        series.shared = True
        night = series.night()
        assert "in use by something else" in night.disks["a"].why and night.disks["b"].changed == frozenset()


def test_a_bitmap_that_goes_in_the_last_moment(tmp_path: Path, before: dict[str, bytes]) -> None:
    with machine(tmp_path) as qemu:
        series = Series(qemu)
        series.night()

        def removed() -> None:
            qemu.ask("block-dirty-bitmap-remove", bitmap_of(qemu, "b"))

        def at_once() -> None:
            other = threading.Thread(target=removed)
            other.start()
            other.join()

        night = series.night(just_before=at_once)
        assert series.check() == {"a": 0, "b": -1, "c": 0} and night.said == []
        series.night()
        assert series.check() == {"a": 0, "b": 0, "c": 0}


def test_disks_that_change_their_names_are_not_taken_for_each_other(tmp_path: Path, before: dict[str, bytes]) -> None:
    """The names of the parent's drives would fit, and so would the sizes."""
    need("qemu-img")
    for name in ("x", "y"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", f"{name}.qcow2", "1M"], cwd=tmp_path, check=True)

    def started(*names: str) -> AbstractContextManager[Qemu]:
        command = ["qemu-storage-daemon"]
        for number in (1, 2):
            command += ["--chardev", f"socket,id=m{number},path={number}.qmp,server=on,wait=off"]
            command += ["--monitor", f"m{number}"]
        for node, image in zip(("x", "y"), names, strict=True):
            command += ["--blockdev", f"qcow2,node-name={node},file.driver=file,file.filename={image}.qcow2"]
        return running(tmp_path, command)

    with started("x", "y") as qemu:
        series = Series(qemu)
        series.night()
    with started("y", "x") as series.qemu:
        night = series.night()
        assert [told.changed for told in night.disks.values()] == [None, None]
        series.night()
        assert series.check() == {"x": 0, "y": 0}
        assert [len(names) for names in kept(series.qemu).values()] == [1, 1]


def test_disks_with_internal_snapshots_are_not_kept_from_reverting(tmp_path: Path, before: dict[str, bytes]) -> None:
    """QEMU refuses to revert a disk that has a bitmap, be it ours or another's; so there is never a wrong one."""
    with machine(tmp_path, "-S") as qemu:
        series = Series(qemu)
        series.night()
        qemu.ask("blockdev-snapshot-internal-sync", {"device": "b", "name": "first"})
        write(qemu, "b", 0, 1)
        night = series.night()
        assert series.check()["b"] == 1
        assert any(one.startswith("b: its image has internal snapshots") for one in night.said)
        assert sorted(kept(qemu)) == ["a", "c"]
        night = series.night()
        assert night.disks["b"].changed is None
    revert = ["qemu-img", "snapshot", "-a", "first", "b.qcow2"]
    subprocess.run(revert, cwd=tmp_path, check=True)
    with machine(tmp_path, "-S") as series.qemu:
        series.qemu.ask("blockdev-snapshot-delete-internal-sync", {"device": "b", "name": "first"})
        assert series.night().disks["b"].changed is None
    done = subprocess.run(revert, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, "without a snapshot there is nothing to revert to"


def test_an_external_snapshot_and_its_commit(tmp_path: Path, before: dict[str, bytes]) -> None:
    """The disk is another node then, and the old one again."""
    with machine(tmp_path) as qemu:
        series = Series(qemu)
        series.night()
        qemu.ask("blockdev-snapshot-sync", {"device": "b", "snapshot-file": str(tmp_path / "over.qcow2")})
        assert "no record" in series.night().disks["b"].why
        write(qemu, "b", 0, 1)
        series.night()
        assert series.check()["b"] == 1
        qemu.ask("block-commit", {"job-id": "commit", "device": "b"})
        until(lambda: qemu.ask("query-jobs")[0]["status"] == "ready")
        qemu.ask("job-complete", {"id": "commit"})
        until(lambda: qemu.ask("query-jobs") == [])
        assert "no record" in series.night().disks["b"].why
        series.night()
        assert series.check()["b"] == 0
        assert len(kept(qemu)["b"]) == 1


# -- several series, and those of whose archives nothing came --


def test_a_night_that_failed_leaves_the_bitmaps_as_they_were(tmp_path: Path, before: dict[str, bytes]) -> None:
    with machine(tmp_path) as qemu:
        nodes = qemu.nodes()
        series = Series(qemu)
        series.night()
        write(qemu, "b", 0, 1)
        series.night(lambda: write(qemu, "b", 1 << 16, 1), becomes_archive=False)
        assert kept(qemu) == {name: [name_of(series.nights[0], name)] for name in SIZES}
        series.night()
        assert series.check() == {"a": 0, "b": 2, "c": 0}
        qemu.check_clean(nodes)


def name_of(night: Night, drive: str) -> BitmapName:
    parent = night.request.parent
    return BitmapName(night.request.archive, night.request.created, parent.uuid if parent else None, drive)


def test_two_series_of_one_machine(tmp_path: Path, before: dict[str, bytes]) -> None:
    with machine(tmp_path) as qemu:
        nightly, weekly = Series(qemu), Series(qemu)
        weekly.night()
        for cluster in range(3):
            nightly.night()
            write(qemu, "b", cluster << 16, 1)
        weekly.night()
        nightly.night()
        assert weekly.check()["b"] == 3 and nightly.check()["b"] == 1
        wanted = {name: sorted([name_of(weekly.nights[-1], name), name_of(nightly.nights[-1], name)]) for name in SIZES}
        assert {name: sorted(names) for name, names in kept(qemu).items()} == wanted


def test_several_from_the_same_parent(tmp_path: Path, before: dict[str, bytes]) -> None:
    with storage_daemon(tmp_path, guests=True) as qemu, Nbd(qemu.guests, "b") as guest:
        series = Series(qemu, shared=True, keeps_parent=True)
        first = series.night()
        for cluster in range(3):
            guest.write(cluster << 16, b"x")
            series.nights = [first]
            series.night()
            assert series.check()["b"] == cluster + 1
        assert kept(qemu)["b"] == [name_of(one, "b") for one in reversed(series.nights)]


# -- dropping them --


def test_all_bitmaps_of_ours_can_be_dropped(tmp_path: Path, before: dict[str, bytes]) -> None:
    with machine(tmp_path) as qemu:
        qemu.ask("block-dirty-bitmap-add", {"node": "a-file", "name": "others"})
        forget = ["run", "--forget", f"qmp:{qemu.monitor}"]
        assert "records no changes" in call(*forget).stdout
        night = Series(qemu).night()
        told = json.loads(call(*forget, "--json").stdout)
        assert sorted(one["drive"] for one in told["forgotten"]) == list(SIZES) and told["left"] == []
        assert {one["archive"] for one in told["forgotten"]} == {str(uuid.UUID(bytes=night.request.archive))}
        assert "records no changes" in call(*forget).stdout
        night = Series(qemu).night()
        said = call(*forget).stdout.splitlines()
        assert len(said) == 3 and all("since 2027-01-15 08:00:00 UTC (archive " in line for line in said)
        left = [node.get("dirty-bitmaps") for node in qemu.ask("query-named-block-nodes", {"flat": True})]
        assert [one["name"] for some in left for one in some or ()] == ["others"]


def test_what_qemu_does_not_give_up_is_told(tmp_path: Path, before: dict[str, bytes]) -> None:
    with storage_daemon(tmp_path, guests=True) as qemu:
        Series(qemu, shared=True).night()
        used = bitmap_of(qemu, "b")
        qemu.ask("block-dirty-bitmap-disable", used)
        export = {"type": "nbd", "id": "x", "node-name": "b", "name": "x", "bitmaps": [used["name"]]}
        qemu.ask("block-export-add", export)
        done = call("run", "--forget", f"qmp:{qemu.monitor}", code=6)
        assert "does not give up 1 of its dirty bitmaps" in done.stderr
        assert "b: the record" in done.stdout and "stays" in done.stdout
        assert list(kept(qemu)) == ["b"]


# -- archives --


def contents(archive: Path) -> dict[str, bytes]:
    """What the drives of an archive, or of a chain, are restored as."""
    with tempfile.TemporaryDirectory() as folder:
        call("restore", str(archive), folder)
        return {path.stem: path.read_bytes() for path in Path(folder).iterdir()}


def backed_up(qemu: Qemu, archive: Path, *options: str) -> dict[str, tuple[str, str | None]]:
    """A backup; the way of each drive, and why it is no better one."""
    command = [*qemu.run(archive, "--incremental", "--json", "-q"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return {one["name"]: (one["way"], one["why"]) for one in json.loads(done.stdout)["ways"]}


def test_a_chain_of_archives(tmp_path: Path, before: dict[str, bytes]) -> None:
    disks = {name: bytearray(content) for name, content in before.items()}

    def written(qemu: Qemu, name: str, offset: int) -> None:
        write(qemu, DEVICES[name], offset, 512, offset >> 16)
        disks[name][offset : offset + 512] = bytes([offset >> 16]) * 512

    def check(number: int) -> None:
        assert contents(tmp_path / f"archives/{number}.vma.zst") == disks

    (tmp_path / "archives").mkdir()
    archive = str(tmp_path / "archives/{}.vma.zst")
    with machine(tmp_path) as qemu:
        nodes = qemu.nodes()
        full = ("full", "no archive that fits lies beside it")
        assert backed_up(qemu, Path(archive.format(0))) == dict.fromkeys("abc", full)
        for night in (1, 2):
            for name in "abc":
                written(qemu, name, night << 16)
            bitmap = dict.fromkeys("abc", ("bitmap", None))
            assert backed_up(qemu, Path(archive.format(night)), "--verify") == bitmap
        qemu.check_clean(nodes)
    check(2)
    with machine(tmp_path) as qemu:
        written(qemu, "a", 9 << 16)
        written(qemu, "b", 8 << 16)
        way, why = backed_up(qemu, Path(archive.format(3)))["a"]
        assert way == "digest" and why is not None and "no record" in why
        check(3)
        for night in (4, 5):
            ways = backed_up(qemu, Path(archive.format(night)), "--max-chain", "4")
        assert ways["a"][0] == "full" and len(kept(qemu)["a"]) == 1
        check(5)


STEPS = (
    "qemu.image",
    "qemu.freeze",
    "qemu.export",
    "copy.read",
    "archive.finish",
    "qemu.end",
    "job.decided",
    "qemu.keep",
)


def test_runs_that_are_killed_at_every_step(tmp_path: Path, before: dict[str, bytes]) -> None:
    """What a night forgets would be missing from all that follow: each writes to places of its own."""
    disks = {name: bytearray(content) for name, content in before.items()}
    (tmp_path / "archives").mkdir()
    with machine(tmp_path) as qemu:
        nodes = qemu.nodes()
        backed_up(qemu, tmp_path / "archives/first.vma.zst")
        for number, step in enumerate(STEPS, 1):
            write_all(qemu, number << 16, 512, number)
            archive = tmp_path / f"archives/{number}-killed.vma.zst"
            killed_at(step, qemu.run(archive, "--incremental"), everybody=number % 2 == 0)
            assert archive.exists() == (step in STEPS[-2:])
            write_all(qemu, (number << 16) + 512, 512, 0)
            for disk in disks.values():
                disk[number << 16 : (number << 16) + 1024] = bytes([number]) * 512 + bytes(512)
            ways = backed_up(qemu, tmp_path / f"archives/{number}.vma.zst")
            assert {way for way, _ in ways.values()} == {"digest" if step == "job.decided" else "bitmap"}
            assert [len(names) for names in kept(qemu).values()] == [1, 1, 1]
        qemu.check_clean(nodes)
    assert contents(archive.with_name(f"{number}.vma.zst")) == disks


STOPS = """
import os, signal, sys
from pybackup.core.trace import Trace
step = sys.argv.pop(1)
def told(self, event, **values):
    if event == step:
        os.kill(os.getpid(), signal.SIGSTOP)
Trace.__call__ = told
from pybackup.cli.main import main
main()
"""


def killed_at(step: str, command: list[str], *, everybody: bool) -> None:
    """Run pybackup up to a step, and kill it there; its guardian too, or it does its work."""
    client = subprocess.Popen(
        [sys.executable, "-c", STOPS, step, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert os.WIFSTOPPED(os.waitpid(client.pid, os.WUNTRACED)[1]), f"it ended without {step}"
        for guardian in guardians_of(client.pid) if everybody else ():
            os.kill(guardian, signal.SIGKILL)
    finally:
        client.kill()
        client.wait()
    until(lambda: not guardians_of(client.pid))
