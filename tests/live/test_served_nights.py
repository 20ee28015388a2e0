"""Histories of served disks, made by the real programs: nights of changes, of which only those are read."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live.guests import Guest, History
from live.nbd_client import Nbd
from live.processes import Server, call, ended, interrupt, served, until

from pybackup.core.archive.chain import ParentSearch, open_chain
from pybackup.core.archive.view import ArchiveView
from pybackup.core.places.kinds import LocalPath
from pybackup.formats.vma import DriveInfo

SIZES = {"a": (12 << 20) + 512, "b": 3 << 20}
BUSY = 1 << 20
"""Bytes at the beginning of each disk on which a guest works all the while; the rest changes between the nights."""
NIGHTS = 20


class Disks:
    """The disks, and what must be on them behind BUSY. ``parts``: of what they hold before it, and after how many
    changes."""

    def __init__(self, folder: Path) -> None:
        self.random = random.Random(1)
        self.images = {name: folder / f"{name}.img" for name in SIZES}
        for name, path in self.images.items():
            path.write_bytes(self.random.randbytes(2 << 20) + bytes(SIZES[name] - (2 << 20)))
        self.model = {name: bytearray(path.read_bytes()) for name, path in self.images.items()}
        self.history = History(1, list(SIZES), 0, BUSY)
        self.parts: tuple[dict[str, bytes], int] = {name: bytes(disk) for name, disk in self.model.items()}, 0

    def change(self, server: Server) -> None:
        """Write, zero and trim here and there; twenty changes of a few clusters."""
        for name in SIZES:
            with Nbd(server.nbd, name) as disk:
                for number in range(10):
                    start = self.random.randrange(BUSY, SIZES[name] - 1)
                    length = min(self.random.choice([1, 4096, 70_000]), SIZES[name] - start)
                    content = bytes(length) if number % 3 else self.random.randbytes(length)
                    if number % 3 == 0:
                        disk.write(start, content)
                    elif number % 3 == 1:
                        disk.zero(start, length)
                    else:
                        disk.trim(start, length)
                        content = disk.read(start, length)  # a file system may have punched only a part
                    self.model[name][start : start + length] = content

    def check(self, archive: Path) -> None:
        """Every byte of an archive is of the instant at which it was made, after those that were checked before."""
        with open_chain(LocalPath(str(archive)), ParentSearch()) as chain:
            found = {drive.name: _content(chain.view, drive) for drive in chain.view.header.drives}
        for name, content in found.items():
            assert content[BUSY:] == self.model[name][BUSY:]
        self.parts = found, self.history.instant(self.parts[0], found, self.parts[1])


def _content(view: ArchiveView, drive: DriveInfo) -> bytes:
    clusters = (view.read_cluster(drive.drive_id, number) for number in range(drive.clusters))
    return b"".join(clusters)[: drive.size]


@pytest.fixture(name="disks")
def _disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


@pytest.fixture(name="server")
def _server(tmp_path: Path, disks: Disks) -> Iterator[Server]:
    with served(tmp_path, *map(str, disks.images.values())) as server:
        yield server


def night(server: Server, archive: Path, *options: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(call("run", "--json", f"serve:{server.control}", str(archive), *options).stdout)
    return report


def ways(report: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["way"] for one in report["ways"]}


def test_a_chain_of_twenty_nights_while_a_guest_writes(server: Server, disks: Disks, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    with Guest(server.nbd, disks.history, list(SIZES)) as guest:
        for number in range(NIGHTS):
            archive = folder / f"{number:02}.vma.zst"
            if number in (3, 11):
                _kill_one(server, archive, number)
            report = night(server, archive, "--incremental", "--level", "1")
            disks.check(archive)
            if number:
                assert ways(report) == {"a": "server", "b": "server"}
                assert report["unchanged"] > SIZES["a"] // 2
            disks.change(server)
    assert guest.done > disks.parts[1] > NIGHTS
    assert [path.name for path in sorted(folder.iterdir())] == [f"{number:02}.vma.zst" for number in range(NIGHTS)]
    (tmp_path / "out").mkdir()
    call("restore", str(folder / f"{NIGHTS - 1:02}.vma.zst"), str(tmp_path / "out"))
    assert {name: (tmp_path / "out" / f"{name}.raw").read_bytes() for name in SIZES} == disks.parts[0]


def _kill_one(server: Server, archive: Path, number: int) -> None:
    """A run that has its instant, and then never ends well."""
    client = server.start_backup(str(archive), "--incremental")
    if number % 2:
        interrupt(client, signal.SIGKILL)
    else:
        interrupt(client)
    until(lambda: server.job() is None)


def test_two_jobs_each_go_on_from_their_own(server: Server, disks: Disks, tmp_path: Path) -> None:
    nightly, weekly = tmp_path / "nightly", tmp_path / "weekly"
    for folder in (nightly, weekly):
        folder.mkdir()
        night(server, folder / "0.vma.zst", "--incremental")
    for number in range(1, 8):
        disks.change(server)
        folders = [nightly, weekly] if number in (4, 7) else [nightly]
        for folder in folders:
            report = night(server, folder / f"{number}.vma.zst", "--incremental")
            assert ways(report) == {"a": "server", "b": "server"}
            disks.check(folder / f"{number}.vma.zst")
    status = server.ask("status")
    assert len(status["archives"]) == 8 and [one["changed"] for one in status["drives"]] == [0, 0]
    disks.change(server)
    assert all(0 < one["changed"] < one["size"] for one in server.ask("status")["drives"])
    assert "changed since the last archive" in call("ctl", server.control, "status").stdout


def test_a_server_that_was_started_anew_knows_nothing(disks: Disks, tmp_path: Path) -> None:
    images = [str(path) for path in disks.images.values()]
    with served(tmp_path, *images) as server:
        night(server, tmp_path / "0.vma.zst")
        disks.change(server)
    with served(tmp_path, *images) as server:
        said = call("run", f"serve:{server.control}", str(tmp_path / "1.vma.zst"), "--incremental", "-v").stderr
        assert "a, b: read whole, and compared with the parent's digests: the server knows no changes since" in said
        disks.check(tmp_path / "1.vma.zst")
        disks.change(server)
        report = night(server, tmp_path / "2.vma.zst", "--base", str(tmp_path / "1.vma.zst"))
        assert ways(report) == {"a": "server", "b": "server"}
        disks.check(tmp_path / "2.vma.zst")


def test_what_is_changed_behind_the_servers_back_is_found_by_the_sample(
    server: Server, disks: Disks, tmp_path: Path
) -> None:
    night(server, tmp_path / "0.vma.zst")
    with disks.images["a"].open("r+b") as file:
        file.seek(BUSY)
        file.write(b"behind" * 200_000)
    disks.model["a"][BUSY : BUSY + 1_200_000] = b"behind" * 200_000
    report = night(server, tmp_path / "1.vma.zst", "--incremental")
    assert ways(report) == {"a": "digest", "b": "server"}
    assert "said to be unchanged" in report["ways"][0]["why"]
    disks.check(tmp_path / "1.vma.zst")


def test_a_disk_that_others_may_write_to_has_no_record(disks: Disks, tmp_path: Path) -> None:
    with served(tmp_path, "--force-share", *map(str, disks.images.values())) as server:
        night(server, tmp_path / "0.vma.zst")
        report = night(server, tmp_path / "1.vma.zst", "--incremental")
        assert [(one["way"], "others may write" in one["why"]) for one in report["ways"]] == [("digest", True)] * 2
        assert server.ask("status")["drives"][0]["changed"] is None


def test_a_cancelled_client_leaves_the_record_of_the_night_before(server: Server, disks: Disks, tmp_path: Path) -> None:
    night(server, tmp_path / "0.vma.zst")
    disks.change(server)
    changed = [one["changed"] for one in server.ask("status")["drives"]]
    client = server.start_backup(str(tmp_path / "no.vma.zst"), "--incremental")
    call("ctl", server.control, "cancel")
    assert ended(client)[0] == 1
    assert [one["changed"] for one in server.ask("status")["drives"]] == changed
    assert ways(night(server, tmp_path / "1.vma.zst", "--incremental")) == {"a": "server", "b": "server"}
    disks.check(tmp_path / "1.vma.zst")
