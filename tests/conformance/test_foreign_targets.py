"""Restoring into images of other formats and to NBD exports; qemu-img says whether the disk is the same."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import encode
from command_line import Outcome, end, listing, pybackup, start, wait_until
from conftest import need
from qemu_images import NEW, SIZE, Kind, content, qemu_img, same_disk, servers_of, virtual_size

DISK = content()


@pytest.fixture(autouse=True)
def _needed(tmp_path: Path) -> object:
    need("qemu-img", "qemu-nbd", "qemu-io")
    yield
    wait_until(lambda: not servers_of(tmp_path), "the end of all qemu-nbd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "disk.vma").write_bytes(encode({"disk": DISK}))
    (tmp_path / "disk.img").write_bytes(DISK)
    return tmp_path


def refused(folder: Path, code: int, sentence: str, *arguments: str) -> Outcome:
    before = listing(folder)
    done = pybackup("restore", *arguments, cwd=folder)
    assert (done.code, done.out) == (code, b""), done.err
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert listing(folder) == before
    return done


# -- new images --


@pytest.mark.parametrize("kind", NEW, ids=str)
def test_a_new_image_holds_the_disk(folder: Path, kind: Kind) -> None:
    image = folder / f"new.{kind.suffix}"
    done = pybackup("restore", "disk.vma", image, cwd=folder)
    assert (done.code, done.err) == (0, "")
    same_disk(folder / "disk.img", "raw", image, kind.image_format)
    assert sorted(listing(folder)) == sorted(["disk.img", "disk.vma", image.name])
    assert pybackup("compare", "disk.vma", image, cwd=folder).code == 0
    assert image.stat().st_blocks * 512 < SIZE  # holes stay holes


@pytest.mark.parametrize("kind", NEW, ids=str)
def test_a_folder_of_images(folder: Path, kind: Kind) -> None:
    (folder / "two.vma").write_bytes(encode({"a": DISK, "b": DISK[: 1 << 20]}))
    (folder / "sub").mkdir()
    assert pybackup("restore", "--format", kind.image_format, "two.vma", "sub", cwd=folder).code == 0
    assert sorted(listing(folder / "sub")) == [f"a.{kind.suffix}", f"b.{kind.suffix}"]
    for name in "ab":
        disk = f"{name}={folder}/sub/{name}.{kind.suffix}"
        assert pybackup("compare", "two.vma", disk, cwd=folder).code == 0


@pytest.mark.parametrize("size", [512, 65536 - 512, (1 << 20) + 512, 5 << 30])
@pytest.mark.parametrize("kind", NEW, ids=str)
def test_the_size_is_the_drives(folder: Path, kind: Kind, size: int) -> None:
    with open(folder / "disk.raw", "wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), b"\7" * 512, size - 512)
    assert pybackup("run", "disk.raw", "sized.vma", cwd=folder).code == 0
    assert pybackup("restore", "sized.vma", f"new.{kind.suffix}", cwd=folder).code == 0
    assert virtual_size(folder / f"new.{kind.suffix}", kind.image_format) == size
    if size < 1 << 30:
        same_disk(folder / "disk.raw", "raw", folder / f"new.{kind.suffix}", kind.image_format)
    assert pybackup("compare", "sized.vma", f"disk=new.{kind.suffix}", cwd=folder).code == 0


def test_a_size_that_the_format_cannot_have(folder: Path) -> None:
    (folder / "odd.vma").write_bytes(encode({"disk": DISK[:1_000_001]}))
    refused(folder, 5, "qcow2 images cannot have 1,000,001 bytes, only 1,000,448", "odd.vma", "new.qcow2")
    with open(folder / "disk.raw", "wb") as file:
        file.truncate(3 << 40)
    assert pybackup("run", "disk.raw", "large.vma", cwd=folder).code == 0
    (folder / "disk.raw").unlink()  # too large for a look at it
    refused(folder, 5, "too large for file format 'vpc'", "large.vma", "new.vhd")


def test_what_exists_is_only_replaced_by_force(folder: Path) -> None:
    (folder / "new.qcow2").write_bytes(b"mine")
    refused(folder, 5, "new.qcow2 exists already; --force replaces it", "disk.vma", "new.qcow2")
    assert pybackup("restore", "--force", "disk.vma", "new.qcow2", cwd=folder).code == 0
    same_disk(folder / "disk.img", "raw", folder / "new.qcow2", "qcow2")
    refused(folder, 5, "the folder nowhere does not exist", "disk.vma", "nowhere/new.qcow2")
    (folder / "folder.qcow2").mkdir()
    assert pybackup("restore", "disk.vma", "folder.qcow2", cwd=folder).code == 0
    assert listing(folder / "folder.qcow2") == {"disk.raw": DISK}


@pytest.mark.parametrize("name, kind", [("new.qcow2", "qcow2"), ("new.img", "raw")])
def test_an_image_in_use_is_not_replaced(folder: Path, name: str, kind: str) -> None:
    qemu_img("create", "-q", "-f", kind, folder / name, "1M")
    command = ["qemu-io", "-f", kind, folder / name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdin is not None and user.stdout is not None
        user.stdin.write(b"read 0 512\n")
        user.stdin.flush()
        assert b"read" in user.stdout.readline()  # so it is open
        sentence = f"{name} is in use by another program (QEMU image lock)"
        refused(folder, 6, sentence, "--force", "disk.vma", name)
        refused(folder, 6, sentence, "--force", "disk.vma", "--to", f"disk={name}")
        user.stdin.close()
    assert pybackup("restore", "--force", "disk.vma", name, cwd=folder).code == 0
    same_disk(folder / "disk.img", "raw", folder / name, kind)


def test_where_a_format_makes_no_sense(folder: Path) -> None:
    for target in ("-", "nbd://localhost/x"):
        refused(
            folder,
            2,
            f"qcow2 images are made as new files, and {target} is none",
            "--format",
            "qcow2",
            "disk.vma",
            target,
        )


def test_raw_that_is_told_is_raw(folder: Path) -> None:
    assert pybackup("restore", "--format", "raw", "disk.vma", "new.qcow2", cwd=folder).code == 0
    assert (folder / "new.qcow2").read_bytes() == DISK


@pytest.mark.parametrize("name", ["nbd:new,a=b.qcow2", "json:{new}.qcow2", "a b'\"%\\.vmdk", "ü\udcff.qcow2"])
def test_no_name_means_anything_else_to_qemu(folder: Path, name: str) -> None:
    assert pybackup("restore", "disk.vma", f"./{name}", cwd=folder).code == 0
    assert pybackup("compare", "disk.vma", f"disk=./{name}", cwd=folder).code == 0


def test_an_image_has_its_own_name_inside(folder: Path) -> None:
    assert pybackup("restore", "disk.vma", "new.vmdk", cwd=folder).code == 0
    assert b'SPARSE "new.vmdk"' in (folder / "new.vmdk").read_bytes()[:4096]


def test_a_damaged_archive_leaves_a_partial_image(folder: Path) -> None:
    archive = bytearray(encode({"disk": random.Random(1).randbytes(48 << 20)}))
    archive[47 << 20] ^= 1
    (folder / "bad.vma").write_bytes(archive)
    done = pybackup("restore", "bad.vma", "new.qcow2", cwd=folder)
    assert (done.code, len(done.err.splitlines())) == (4, 1)
    assert not (folder / "new.qcow2").exists()
    qemu_img("check", "-f", "qcow2", folder / "new.qcow2.partial")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 700 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=700k", "none", place]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("kind", NEW, ids=str)
def test_a_full_disk(folder: Path, small: Path, kind: Kind) -> None:
    done = pybackup("restore", "disk.vma", small / f"new.{kind.suffix}", cwd=folder)
    assert done.code == 5
    assert "no space is left" in done.err
    assert len(done.err.splitlines()) == 1
    assert f"new.{kind.suffix}" not in listing(small)
    assert ".new" not in "".join(listing(small))


def test_without_qemu(folder: Path) -> None:
    done = pybackup("restore", "disk.vma", "new.qcow2", cwd=folder, env={"PATH": str(folder)})
    assert (done.code, done.err.count("\n")) == (5, 1)
    assert "needs qemu-img, which is not installed (Debian's package qemu-utils has it)" in done.err
    assert sorted(listing(folder)) == ["disk.img", "disk.vma"]


# -- exports --


@contextlib.contextmanager
def exported(folder: Path, *command: str) -> Iterator[str]:
    """The URI of an export; the server is ready."""
    path = folder / "nbd.sock"
    process = subprocess.Popen([*command], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        wait_until(path.exists, "the server", [process])
        yield f"nbd+unix:///?socket={path}"
    finally:
        process.terminate()
        process.wait(timeout=30)
        path.unlink(missing_ok=True)


def qemu(folder: Path, image: str, image_format: str, *more: str) -> contextlib.AbstractContextManager[str]:
    return exported(
        folder, "qemu-nbd", "-t", "-e", "8", "-k", str(folder / "nbd.sock"), *more, "-f", image_format, image
    )


def test_an_empty_export(folder: Path) -> None:
    qemu_img("create", "-q", "-f", "raw", folder / "empty.raw", str(SIZE + 65536))
    with qemu(folder, "empty.raw", "raw") as uri:
        assert pybackup("restore", "disk.vma", uri, cwd=folder)[::2] == (0, "")
        refused(folder, 5, "holds data; --force overwrites it", "disk.vma", uri)
    assert (folder / "empty.raw").read_bytes() == DISK + bytes(65536)


def test_an_export_with_data(folder: Path) -> None:
    (folder / "full.raw").write_bytes(b"\xff" * SIZE)
    with qemu(folder, "full.raw", "raw") as uri:
        refused(folder, 5, "holds data; --force overwrites it", "disk.vma", uri)
        assert pybackup("restore", "--force", "disk.vma", uri, cwd=folder)[::2] == (0, "")
        assert pybackup("compare", "disk.vma", f"disk={uri}", cwd=folder).code == 0
    assert (folder / "full.raw").read_bytes() == DISK


def test_data_far_into_an_export_is_found(folder: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", folder / "far.qcow2", "4T")
    far = ["qemu-io", "-c", "write -P 1 3T 512", folder / "far.qcow2"]
    subprocess.run(far, check=True, stdout=subprocess.DEVNULL)
    with qemu(folder, "far.qcow2", "qcow2") as uri:
        refused(folder, 5, "holds data; --force overwrites it", "disk.vma", uri)


def test_an_export_that_does_not_tell(folder: Path) -> None:
    need("nbdkit")
    with exported(folder, "nbdkit", "-f", "-U", "nbd.sock", "--filter=noextents", "null", "100M") as uri:
        refused(folder, 5, "does not tell whether it holds data; --force overwrites it", "disk.vma", uri)


def test_exports_that_cannot_be_used(folder: Path) -> None:
    (folder / "small.raw").write_bytes(bytes(SIZE - 512))
    with qemu(folder, "small.raw", "raw") as uri:
        refused(folder, 5, "is too small: it has 9,436,672 bytes, the drive has 9,437,184", "disk.vma", uri, "--force")
    (folder / "empty.raw").write_bytes(bytes(SIZE))
    with qemu(folder, "empty.raw", "raw", "-r") as uri:
        refused(folder, 5, "it is read-only", "disk.vma", uri)
    refused(folder, 5, "No such file", "disk.vma", f"nbd+unix:///?socket={folder}/gone")
    refused(folder, 2, "is no NBD URI", "disk.vma", "nbd+unix:///")


def test_memory_of_nbdkit(folder: Path) -> None:
    need("nbdkit")
    with exported(folder, "nbdkit", "-f", "-U", "nbd.sock", "memory", str(SIZE)) as uri:
        assert pybackup("restore", "disk.vma", uri, cwd=folder)[::2] == (0, "")
        assert pybackup("compare", "disk.vma", f"disk={uri}", cwd=folder).code == 0


def test_no_space_behind_an_export(folder: Path, small: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", small / "thin.qcow2", str(SIZE))
    with qemu(folder, str(small / "thin.qcow2"), "qcow2") as uri:
        done = pybackup("restore", "disk.vma", uri, cwd=folder)
    left = f"{uri} is overwritten in part, and holds neither the old disk nor the whole new one"
    assert (done.code, done.err) == (5, f"pybackup: cannot write {uri}: no space is left; {left}\n")


def test_our_own_server(folder: Path) -> None:
    with open(folder / "empty.raw", "wb") as file:
        file.truncate(SIZE)
    server = start("serve", "--socket", "own.sock", "--control", "control.sock", "empty.raw", cwd=folder)
    try:
        assert server.stdout is not None
        uri = server.stdout.readline().decode().strip()
        assert pybackup("restore", "disk.vma", uri, cwd=folder)[::2] == (0, "")
    finally:
        assert end(server, signal.SIGTERM).code == 0
    assert (folder / "empty.raw").read_bytes() == DISK
