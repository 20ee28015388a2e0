"""`pybackup serve` with images of other formats: what a guest writes is in the image, and they are backed up in use."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from conftest import need
from live.nbd_client import Nbd
from live.processes import PYBACKUP, call, ended, interrupt, restored, served, start, until
from qemu_images import NEW, SIZE, Kind, content, make, qemu_img, servers_of

NEWS = b"\7" * 70_000


@pytest.fixture(autouse=True)
def _needed(tmp_path: Path) -> object:
    need("qemu-img", "qemu-nbd")
    yield
    until(lambda: not servers_of(tmp_path))


def disk_of(image: Path, kind: Kind, folder: Path) -> bytes:
    qemu_img("convert", "-f", kind.image_format, "-O", "raw", image, folder / "now.raw")
    return (folder / "now.raw").read_bytes()


@pytest.mark.parametrize("kind", NEW, ids=str)
def test_a_guest_writes_while_it_is_backed_up(tmp_path: Path, kind: Kind) -> None:
    image = make(tmp_path, kind)
    old = content()
    with served(tmp_path, str(image)) as server:
        backup = server.start_backup(str(tmp_path / "out.vma"))
        with Nbd(server.nbd, "disk") as guest:
            guest.write(1000, NEWS)
            guest.zero(3 << 20, 65536)
            guest.flush()
            assert guest.read(0, 100_000) == old[:1000] + NEWS + old[71_000:100_000]
        server.ask("speed", speed=0)
        assert ended(backup) == (0, "")
    assert restored(tmp_path / "out.vma", tmp_path / "back") == {"disk": old}
    new = bytearray(old)
    new[1000:71_000] = NEWS
    new[3 << 20 : (3 << 20) + 65536] = bytes(65536)
    assert disk_of(image, kind, tmp_path) == new


def test_what_was_flushed_survives_kill_9(tmp_path: Path) -> None:
    kind = Kind("qcow2", "qcow2")
    image = make(tmp_path, kind)
    with served(tmp_path, str(image)) as server:
        with Nbd(server.nbd, "disk") as guest:
            guest.write(1000, NEWS)
            guest.flush()
            guest.write(200_000, NEWS, fua=True)
            server.process.kill()
        server.process.wait()
    until(lambda: not servers_of(tmp_path))
    disk = disk_of(image, kind, tmp_path)
    assert disk[1000:71_000] == disk[200_000:270_000] == NEWS


def test_read_only(tmp_path: Path) -> None:
    image = make(tmp_path, Kind("qcow2", "qcow2"))
    before = image.read_bytes()
    with served(tmp_path, "--read-only", str(image)) as server:
        call("run", str(image), str(tmp_path / "out.vma"))  # nobody minds another reader
        with Nbd(server.nbd, "disk") as guest:
            assert guest.read(0, SIZE) == content()
            with pytest.raises(PermissionError):
                guest.write(0, b"x")
    assert image.read_bytes() == before


def test_an_image_that_is_served_is_in_use(tmp_path: Path) -> None:
    image = make(tmp_path, Kind("qcow2", "qcow2"))
    with served(tmp_path, str(image)):
        assert "is in use by another program" in call("run", str(image), str(tmp_path / "x.vma"), code=6).stderr
        assert "is in use by another program" in call("serve", str(image), code=6).stderr
        assert "only with --read-only" in call("serve", "--force-share", str(image), code=2).stderr
        with start([PYBACKUP, "serve", "--read-only", "--force-share", str(image)]) as second:
            with Nbd(second.nbd, "disk") as guest:
                assert guest.read(0, SIZE) == content()
            code, said = interrupt(second.process, signal.SIGTERM)
        assert (code, said.count("\n")) == (0, 1)
        assert "is in use by another program; what is read may be of no one moment" in said


def test_one_that_cannot_be_opened_closes_the_others(tmp_path: Path) -> None:
    image = make(tmp_path, Kind("qcow2", "qcow2"))
    (tmp_path / "bad.vmdk").write_bytes(b"KDMV" + bytes(5000))
    failed = call("serve", str(image), str(tmp_path / "bad.vmdk"), code=3)
    assert "bad.vmdk" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not servers_of(tmp_path)


@pytest.mark.parametrize(
    "kind, other",
    [
        (Kind("vmdk", "vmdk", ("-o", "subformat=monolithicFlat")), "disk-flat.vmdk"),
        (Kind("qcow2", "qcow2", ("-o", "data_file=disk.data,data_file_raw=on")), "disk.data"),
    ],
    ids=str,
)
def test_nobody_writes_to_the_data_of_an_image_that_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, other: str
) -> None:
    """QEMU does not lock what holds nothing but data, where it writes to it."""
    need("qemu-io")
    monkeypatch.chdir(tmp_path)
    image = make(tmp_path, kind)
    writing = ["qemu-io", "-f", "raw", "-c", "write 0 512", other]
    with served(tmp_path, str(image)) as server:
        with Nbd(server.nbd, "disk") as guest:
            guest.write(1 << 20, b"new")
            done = subprocess.run(writing, capture_output=True, text=True, check=False)
            assert 'Failed to get "write" lock' in done.stdout + done.stderr
            assert guest.read(1 << 20, 3) == b"new"
    assert subprocess.run(writing, capture_output=True, check=False).returncode == 0
