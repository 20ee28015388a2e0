"""Places of a disk that cannot be read, wherever they lie and whatever the disk is read through."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import pybackup, wait_until
from conftest import need
from live.processes import served
from live.qemu_processes import make_disks, storage_daemon
from qemu_images import qemu_img

SIZE = 2 << 20
SECTORS = SIZE // 512
PLACES = {"first": 0, "last": SECTORS - 1, "middle": SECTORS // 2 + 3}


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Path:
    disk = tmp_path / "good.img"
    disk.write_bytes(random.Random(1).randbytes(SIZE))
    return disk


def without(disk: Path, *places: tuple[int, int]) -> bytes:
    """The disk with zeros there."""
    expected = bytearray(disk.read_bytes())
    for at, length in places:
        expected[at : at + length] = bytes(length)
    return bytes(expected)


def bad_sectors(sectors: list[int], below: str) -> list[str]:
    """QEMU's options for a node that cannot read these sectors."""
    options = ["driver=blkdebug,node-name=bad", f"image={below}"]
    for number, sector in enumerate(sectors):
        error = f"inject-error.{number}"
        options.append(f"{error}.event=none,{error}.iotype=read,{error}.sector={sector},{error}.errno=5")
        options.append(f"{error}.immediately=on")
    return options


@contextlib.contextmanager
def exported(folder: Path, disk: Path, sectors: list[int], image_format: str = "raw") -> Iterator[str]:
    """The URI of an NBD export that cannot read these sectors of the file."""
    need("qemu-storage-daemon")
    socket = folder / "bad.sock"
    nodes = [
        *("--blockdev", f"driver=file,filename={disk},node-name=file,read-only=on"),
        *("--blockdev", ",".join([*bad_sectors(sectors, "file"), "read-only=on"])),
        *("--blockdev", f"driver={image_format},node-name=disk,file=bad,read-only=on"),
        *("--nbd-server", f"addr.type=unix,addr.path={socket}", "--export", "type=nbd,id=e,node-name=disk,name=disk"),
    ]
    with subprocess.Popen(["qemu-storage-daemon", *nodes]) as process:
        try:
            wait_until(socket.exists, "the export", [])
            yield f"nbd+unix:///disk?socket={socket}"
        finally:
            process.terminate()


@contextlib.contextmanager
def mounted(folder: Path, disk: Path, sector: int, size: int = SIZE) -> Iterator[Path]:
    """A file that cannot be read at this sector, through FUSE."""
    need("qemu-storage-daemon")
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("no access to /dev/fuse")
    place = folder / "disk.img"
    place.touch()
    nodes = [
        *("--blockdev", f"driver=file,filename={disk},node-name=file,read-only=on"),
        *("--blockdev", ",".join([*bad_sectors([sector], "file"), "read-only=on"])),
        *("--export", f"type=fuse,id=e,node-name=bad,mountpoint={place},writable=off"),
    ]
    with subprocess.Popen(["qemu-storage-daemon", *nodes], stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: process.poll() is not None or place.stat().st_size >= size, "the mount", [])
            if process.poll() is not None:
                assert process.stderr is not None
                pytest.skip(f"cannot mount: {process.stderr.read().decode().strip()}")
            yield place
        finally:
            process.terminate()


@pytest.mark.parametrize("sector", PLACES.values(), ids=PLACES)
def test_any_sector_of_an_export(tmp_path: Path, disk: Path, sector: int) -> None:
    with exported(tmp_path, disk, [sector]) as uri:
        failed = pybackup("run", uri, "a.vma", cwd=tmp_path)
        assert failed.code == 3
        assert (
            "cannot read drive disk at byte" in failed.err and "--skip-unreadable saves what can be read" in failed.err
        )
        done = pybackup("run", "--json", "--skip-unreadable", uri, "a.vma", cwd=tmp_path)
    assert done.code == 3
    lost = {"drive": "disk", "offset": 512 * sector, "length": 512}
    assert (done.json["unreadable"], done.json["unreadable_bytes"]) == ([lost], 512)
    assert f"drive disk: 512 bytes at {512 * sector} could not be read and are zeros in the archive" in done.err
    assert pybackup("info", "--json", "a.vma", cwd=tmp_path).json["about"]["unreadable"] == [lost]
    told = pybackup("info", "a.vma", cwd=tmp_path).out.decode()
    assert f"drive disk: 512 bytes at {512 * sector} could not be read when it was saved and are zeros here" in told
    verified = pybackup("verify", "a.vma", cwd=tmp_path)
    assert verified.code == 0
    assert f"a.vma: drive disk: 512 bytes at {512 * sector} could not be read when it was" in verified.out.decode()
    assert pybackup("verify", "--json", "a.vma", cwd=tmp_path).json["unreadable"] == [lost]
    assert pybackup("restore", "a.vma", "back.raw", cwd=tmp_path).code == 0
    assert (tmp_path / "back.raw").read_bytes() == without(disk, (512 * sector, 512))


def test_many_places_are_summed_up(tmp_path: Path, disk: Path) -> None:
    sectors = list(range(5, SECTORS, 100))
    with exported(tmp_path, disk, sectors) as uri:
        done = pybackup("run", "--json", "--skip-unreadable", uri, "a.vma", cwd=tmp_path)
    assert done.code == 3
    assert len(done.json["unreadable"]) == len(sectors)
    assert len(done.err.splitlines()) == 11
    summed_up = f"in all {512 * len(sectors)} bytes in {len(sectors)} places could not be read"
    assert summed_up in done.err.splitlines()[-1]
    assert pybackup("restore", "a.vma", "back.raw", cwd=tmp_path).code == 0
    assert (tmp_path / "back.raw").read_bytes() == without(disk, *((512 * sector, 512) for sector in sectors))


def test_a_qcow2_whose_table_cannot_be_read(tmp_path: Path, disk: Path) -> None:
    """An export of an image with a bad place under one of its clusters, and one under nothing that is used."""
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, image)
    first = json.loads(qemu_img("map", "--output=json", image))[0]
    with exported(tmp_path, image, [first["offset"] // 512 + 7], "qcow2") as uri:
        done = pybackup("run", "--skip-unreadable", uri, "a.vma", cwd=tmp_path)
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert pybackup("restore", "a.vma", "back.raw", cwd=tmp_path).code == 0
    assert (tmp_path / "back.raw").read_bytes() == without(disk, (7 * 512, 512))


def test_a_served_disk(tmp_path: Path, disk: Path) -> None:
    with exported(tmp_path, disk, [9]) as uri, served(tmp_path, "--read-only", f"disk={uri}") as server:
        failed = pybackup("run", f"serve:{server.control}", "a.vma", cwd=tmp_path)
        assert failed.code == 3 and "cannot read drive disk at byte 0" in failed.err
        done = pybackup("run", "--skip-unreadable", f"serve:{server.control}", "a.vma", cwd=tmp_path)
        assert done.code == 3
        assert "drive disk: 512 bytes at 4608 could not be read and are zeros in the archive" in done.err
        last = server.ask("status")["last"]
        assert last["unreadable"] == [{"drive": "disk", "offset": 4608, "length": 512}]
        assert last["unreadable_bytes"] == 512
    assert pybackup("restore", "a.vma", "back.raw", cwd=tmp_path).code == 0
    assert (tmp_path / "back.raw").read_bytes() == without(disk, (4608, 512))


@pytest.mark.parametrize("sector", PLACES.values(), ids=PLACES)
def test_any_sector_of_a_file(tmp_path: Path, disk: Path, sector: int) -> None:
    page = 512 * sector // 4096 * 4096
    with mounted(tmp_path, disk, sector) as file:
        failed = pybackup("run", file, tmp_path / "a.vma")
        assert failed.code == 3 and "--skip-unreadable saves what can be read" in failed.err
        assert len(failed.err.splitlines()) == 1
        for told in ([], ["--format", "raw"]):
            done = pybackup("run", "--force", "--skip-unreadable", "--allow-changing", *told, file, tmp_path / "a.vma")
            assert (done.code, done.err.count("\n")) == (3, 1)
            assert f"drive disk: 4096 bytes at {page} could not be read" in done.err
    assert pybackup("restore", "a.vma", "back.raw", cwd=tmp_path).code == 0
    assert (tmp_path / "back.raw").read_bytes() == without(disk, (page, 4096))


def test_a_disk_of_a_running_qemu(tmp_path: Path, disk: Path) -> None:
    make_disks(tmp_path)
    below = ("--blockdev", f"driver=file,filename={disk},node-name=below")
    bad = ("--blockdev", ",".join(bad_sectors([0, SECTORS // 2], "below")).replace("node-name=bad", "node-name=disk"))
    archive = tmp_path / "a.vma"
    with storage_daemon(tmp_path, *below, *bad) as qemu:
        nodes = qemu.nodes()
        wanted = ("run", f"qmp:{tmp_path}/2.qmp", archive, "--fleece", tmp_path, "--drive", "disk")
        assert "cannot read drive disk at byte 0" in pybackup(*wanted).err
        done = pybackup(*wanted, "--json", "--skip-unreadable")
        assert done.code == 3, done.err
        assert [(one["offset"], one["length"]) for one in done.json["unreadable"]] == [(0, 512), (SIZE // 2, 512)]
        qemu.check_clean(nodes)
    assert pybackup("restore", archive, tmp_path / "back.raw").code == 0
    assert (tmp_path / "back.raw").read_bytes() == without(disk, (0, 512), (SIZE // 2, 512))


@pytest.mark.parametrize("place", [0.3, 0.6, 1.0])
def test_an_archive_on_a_bad_disk(tmp_path: Path, disk: Path, place: float) -> None:
    """What is around a bad place of the archive is saved; where the header is bad, nothing can be."""
    archive = tmp_path / "a.vma"
    assert pybackup("run", "--frame-size", "64K", f"disk={disk}", archive).code == 0
    size = archive.stat().st_size
    sector = min(int(size * place), size - 1) // 512
    with mounted(tmp_path, archive, sector, size) as bad:
        failed = pybackup("restore", bad, tmp_path / "no.raw")
        assert failed.code == 4 and "Input/output error" in failed.err
        saved = pybackup("restore", "--skip-damaged", bad, tmp_path / "back.raw")
    assert saved.code == 4
    assert "Input/output error" not in saved.err
    back, good = (tmp_path / "back.raw").read_bytes(), disk.read_bytes()
    clusters = [at for at in range(0, SIZE, 65536) if back[at : at + 65536] != good[at : at + 65536]]
    assert len(clusters) <= 2
    assert all(back[at : at + 65536] == bytes(65536) for at in clusters)
