"""Images of other formats as sources; qemu-img makes them, and says whether the disk in the archive is theirs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import PROGRAM, Outcome, listing, pybackup, wait_until
from conftest import need
from qemu_images import KINDS, NEW, SIZE, Kind, content, make, qemu_img, same_disk, servers_of, virtual_size

from pybackup.core.images.formats import FORMATS

QCOW2 = Kind("qcow2", "qcow2")


@pytest.fixture(autouse=True)
def _needed(tmp_path: Path) -> object:
    need("qemu-img", "qemu-nbd", "qemu-io")
    yield
    wait_until(lambda: not servers_of(tmp_path), "the end of all qemu-nbd")


def refused(folder: Path, code: int, sentence: str, *arguments: str) -> Outcome:
    before = listing(folder)
    done = pybackup("run", *arguments, "out.vma", cwd=folder)
    assert (done.code, done.out) == (code, b""), done.err
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert listing(folder) == before
    return done


def test_one_kind_of_each_format_is_tried() -> None:
    assert {kind.image_format for kind in KINDS} == {kind.image_format for kind in NEW} == set(FORMATS)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_archive_holds_the_disk_in_the_image(tmp_path: Path, kind: Kind) -> None:
    image = make(tmp_path, kind)
    archive = tmp_path / "out.vma"
    done = pybackup("run", image, archive)
    assert (done.code, done.err) == (0, "")
    (drive,) = pybackup("info", "--json", archive).json["drives"]
    assert (drive["name"], drive["size"]) == ("disk", SIZE)
    assert pybackup("restore", archive, tmp_path / "back.raw").code == 0
    assert (tmp_path / "back.raw").read_bytes() == content()
    same_disk(tmp_path / "back.raw", "raw", image, kind.image_format)
    assert pybackup("compare", archive, image).code == 0
    subprocess.run(["qemu-io", "-f", kind.image_format, "-c", "write -P 7 4M 1k", image], check=False)
    if "streamOptimized" not in str(kind):
        assert pybackup("compare", archive, image).code == 1


@pytest.mark.parametrize("size", [512, 65536 + 512, SIZE - 512])
@pytest.mark.parametrize("kind", NEW, ids=str)
def test_any_size_is_kept(tmp_path: Path, kind: Kind, size: int) -> None:
    image = tmp_path / f"disk.{kind.suffix}"
    qemu_img("create", "-q", "-f", kind.image_format, *kind.options, image, str(size))
    subprocess.run(
        ["qemu-io", "-f", kind.image_format, "-c", f"write -P 5 {size - 512} 512", image],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert pybackup("run", image, tmp_path / "out.vma").code == 0
    assert pybackup("restore", tmp_path / "out.vma", tmp_path / "back.raw").code == 0
    assert (tmp_path / "back.raw").read_bytes() == bytes(size - 512) + b"\5" * 512


@pytest.mark.parametrize("told", ["vhd", "vpc"])
def test_a_format_that_is_told_needs_no_suffix(tmp_path: Path, told: str) -> None:
    make(tmp_path, Kind("vpc", "vhd", ("-o", "force_size=on"))).rename(tmp_path / "disk")
    assert pybackup("run", "--format", told, "disk", "out.vma", cwd=tmp_path).code == 0
    assert pybackup("restore", "out.vma", "back.raw", cwd=tmp_path).code == 0
    assert (tmp_path / "back.raw").read_bytes() == content()


def test_raw_that_is_told_takes_the_file_itself(tmp_path: Path) -> None:
    image = make(tmp_path, QCOW2)
    assert pybackup("run", "--format", "raw", image, tmp_path / "out.vma").code == 0
    assert pybackup("restore", "--format", "raw", tmp_path / "out.vma", tmp_path / "back.qcow2").code == 0
    assert (tmp_path / "back.qcow2").read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    "name", ["nbd:disk,a=b.qcow2", "json:{disk}.qcow2", "a b'\"%\\.qcow2", "-r.qcow2", "ü\udcff.qcow2"]
)
def test_no_name_means_anything_else_to_qemu(tmp_path: Path, name: str) -> None:
    make(tmp_path, QCOW2).rename(tmp_path / name)
    done = pybackup("run", "--", f"disk={name}", "out.vma", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert pybackup("restore", "out.vma", "back.raw", cwd=tmp_path).code == 0
    assert (tmp_path / "back.raw").read_bytes() == content()


def test_holes_and_zero_clusters_are_not_read(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "1T")
    writes = ["write -P 1 0 64k", "write -P 2 500G 128k", "write -P 3 600G 1M", "write -z 600G 1M", "write -z 700G 4M"]
    subprocess.run(
        ["qemu-io", *(word for write in writes for word in ("-c", write)), image], check=True, stdout=subprocess.DEVNULL
    )
    done = pybackup("run", "--json", "--trace", "copy.read", image, tmp_path / "out.vma")
    assert done.code == 0
    read = [json.loads(line) for line in done.err.splitlines()]
    assert [(one["first"], one["clusters"]) for one in read] == [(0, 1), ((500 << 30) // 65536, 2)]
    assert done.json["zero"] == (1 << 40) - 3 * 65536


def test_backing_files_belong_to_the_disk(tmp_path: Path) -> None:
    base = make(tmp_path, Kind("vmdk", "vmdk"), "base")
    (tmp_path / "sub").mkdir()
    qemu_img("create", "-q", "-f", "qcow2", "-b", f"../{base.name}", "-F", "vmdk", tmp_path / "sub" / "middle.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "sub/middle.qcow2", "-F", "qcow2", tmp_path / "top.qcow2")
    subprocess.run(
        ["qemu-io", "-c", "write -P 7 1M 64k", tmp_path / "top.qcow2"], check=True, stdout=subprocess.DEVNULL
    )
    assert pybackup("run", "top.qcow2", "out.vma", cwd=tmp_path).code == 0
    assert pybackup("restore", "out.vma", "back.raw", cwd=tmp_path).code == 0
    disk = content()
    assert (tmp_path / "back.raw").read_bytes() == disk[: 1 << 20] + b"\7" * 65536 + disk[(1 << 20) + 65536 :]
    base.unlink()
    refused(tmp_path, 3, "base.vmdk: No such file", "top.qcow2")


def test_a_backing_file_of_which_the_format_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(content())
    image = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", image)
    told = image.read_bytes()
    # The header extension with the format becomes one that nobody knows.
    assert told.count(b"\xe2\x79\x2a\xca") == 1
    image.write_bytes(told.replace(b"\xe2\x79\x2a\xca", b"\x11\x22\x33\x44"))
    refused(tmp_path, 3, "names the backing file base.img without its format", "top.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", "-u", tmp_path / "over.qcow2", str(SIZE))
    refused(tmp_path, 3, "top.qcow2 names the backing file base.img without its format", "over.qcow2")


def test_chains_without_an_end(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "a.qcow2", "-F", "qcow2", tmp_path / "a.qcow2", "1M")
    refused(tmp_path, 3, "more than 200 backing files", "a.qcow2")


@pytest.mark.parametrize("change, file", [(b"x", "disk.qcow2"), (b"x", "base.img")])
def test_a_file_that_changes_meanwhile(tmp_path: Path, change: bytes, file: str) -> None:
    (tmp_path / "base.img").write_bytes(content())
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", tmp_path / "disk.qcow2")
    process = subprocess.Popen(
        [*PROGRAM, "run", "--speed", "4M", "disk.qcow2", "out.vma"], cwd=tmp_path, stderr=subprocess.PIPE
    )
    wait_until(lambda: bool(list(tmp_path.glob(".out.vma.partial"))), "the archive", [])
    with open(tmp_path / file, "ab") as changed:
        changed.write(change)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"{file} changed while it was read".encode() in err
    assert not (tmp_path / "out.vma").exists()


def test_an_image_in_use(tmp_path: Path) -> None:
    image = make(tmp_path, QCOW2)
    with subprocess.Popen(["qemu-io", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdin is not None and user.stdout is not None
        user.stdin.write(b"read 0 512\n")
        user.stdin.flush()
        assert b"read" in user.stdout.readline()  # so it is open
        refused(tmp_path, 6, "disk.qcow2 is in use by another program (QEMU image lock)", "disk.qcow2")
        done = pybackup("run", "--force-share", "disk.qcow2", "out.vma", cwd=tmp_path)
        assert done.code == 0
        warning = "disk.qcow2 is in use by another program; what is read may be of no one moment"
        assert done.err == f"pybackup: warning: {warning}\n"
        user.stdin.close()
    done = pybackup("run", "--force", "--force-share", "disk.qcow2", "out.vma", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert pybackup("compare", "out.vma", "disk.qcow2", cwd=tmp_path).code == 0


@contextlib.contextmanager
def written_by_qemu(file: Path) -> Iterator[None]:
    with subprocess.Popen(["qemu-io", "-f", "raw", file], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdin is not None and user.stdout is not None
        user.stdin.write(b"write 0 512\n")
        user.stdin.flush()
        assert b"wrote" in user.stdout.readline()  # so it is open
        yield
        user.stdin.close()


def test_a_raw_backing_file_in_use(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(content())
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", tmp_path / "middle.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", tmp_path / "disk.qcow2")
    with written_by_qemu(tmp_path / "base.img"):
        refused(tmp_path, 6, "base.img is in use by another program (QEMU image lock)", "disk.qcow2")
        done = pybackup("run", "--force-share", "disk.qcow2", "out.vma", cwd=tmp_path)
        assert done.code == 0
        assert "base.img is in use by another program; what is read may be of no one moment" in done.err
    done = pybackup("run", "--force", "disk.qcow2", "out.vma", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    "kind, other",
    [
        (Kind("vmdk", "vmdk", ("-o", "subformat=monolithicFlat")), "disk-flat.vmdk"),
        (Kind("vmdk", "vmdk", ("-o", "subformat=twoGbMaxExtentSparse")), "disk-s001.vmdk"),
        (Kind("qcow2", "qcow2", ("-o", "data_file=disk.data,data_file_raw=on")), "disk.data"),
    ],
    ids=str,
)
def test_the_files_beside_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, other: str) -> None:
    monkeypatch.chdir(tmp_path)
    image = make(tmp_path, kind)
    with written_by_qemu(tmp_path / other):
        refused(tmp_path, 6, f"{other} is in use by another program (QEMU image lock)", image.name)
    image = make(tmp_path, kind)
    with subprocess.Popen(
        [*PROGRAM, "run", "--speed", "4M", image.name, "out.vma"], cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: bool(list(tmp_path.glob(".out.vma.partial"))), "the archive", [])
        with open(tmp_path / other, "r+b") as changed:
            changed.write(b"x")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"{other} changed while it was read".encode() in err
    image = make(tmp_path, kind)
    with open(tmp_path / other, "r+b") as cut:
        cut.truncate(SIZE // 9)
    refused(tmp_path, 3, f"{other} is damaged: it has 1,048,576 bytes, and its data goes on to byte", image.name)


@pytest.mark.parametrize(
    "kind", [Kind("qcow2", "qcow2", ("-o", "lazy_refcounts=on")), Kind("parallels", "hdd")], ids=str
)
def test_an_image_that_was_not_closed(tmp_path: Path, kind: Kind) -> None:
    image = make(tmp_path, kind)
    writes = ["-c", "write -P 5 5M 1M", "-c", "flush", "-c", "sigraise 9"]
    subprocess.run(["qemu-io", "-f", kind.image_format, *writes, image], capture_output=True, check=False)
    assert b"ERROR" in subprocess.run(["qemu-img", "check", image], capture_output=True, check=False).stderr
    assert pybackup("run", image.name, "out.vma", cwd=tmp_path)[::2] == (0, "")
    assert pybackup("restore", "out.vma", "back.raw", cwd=tmp_path).code == 0
    same_disk(tmp_path / "back.raw", "raw", image, kind.image_format)
    assert (tmp_path / "back.raw").read_bytes()[5 << 20 : 6 << 20] == b"\5" * (1 << 20)
    told = pybackup("run", "--force", "-v", image.name, "out.vma", cwd=tmp_path).err
    assert f"pybackup: note: {image.name}: not closed properly; the backup holds what had been flushed" in told


def test_a_vhd_of_another_program_keeps_its_end(tmp_path: Path) -> None:
    disk = content()
    foot = bytearray(512)
    head = (b"conectix", 2, 0x10000, 2**64 - 1, 0, b"vbox", 0x10000, b"Wi2k")
    struct.pack_into(">8sIIQI4sI4sQQHBBI", foot, 0, *head, len(disk), len(disk), 270, 4, 17, 2)
    struct.pack_into(">I", foot, 64, ~sum(foot) & 0xFFFFFFFF)
    (tmp_path / "disk.vhd").write_bytes(disk + foot)
    assert virtual_size(tmp_path / "disk.vhd", "vpc") <= SIZE  # QEMU 7.2 cuts it off, 10.0 does not
    qemu_img("create", "-q", "-f", "qcow2", "-b", "disk.vhd", "-F", "vpc", tmp_path / "top.qcow2", str(SIZE))
    for image in ("disk.vhd", "top.qcow2"):
        assert pybackup("run", "--force", image, "out.vma", cwd=tmp_path).code == 0
        assert pybackup("restore", "--force", "out.vma", "back.raw", cwd=tmp_path).code == 0
        assert (tmp_path / "back.raw").read_bytes() == disk


def test_a_vhd_without_its_parent(tmp_path: Path) -> None:
    child = tmp_path / "disk.vhd"
    qemu_img("create", "-q", "-f", "vpc", "-o", "force_size=on", child, "4M")
    changed = bytearray(child.read_bytes())
    for at in (0, len(changed) - 512):
        struct.pack_into(">II", changed, at + 60, 4, 0)
        struct.pack_into(">I", changed, at + 64, ~sum(changed[at : at + 512]) & 0xFFFFFFFF)
    child.write_bytes(changed)
    refused(tmp_path, 3, "it is a differencing image, which holds only what its parent does not", "disk.vhd")


def test_what_qemu_reads_beyond_what_is_known(tmp_path: Path) -> None:
    make(tmp_path, QCOW2)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "qemu-nbd"
    program.write_text(f'#!/bin/sh\nexec 5</etc/passwd\nexec {shutil.which("qemu-nbd")} "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    before = listing(tmp_path)
    done = pybackup("run", "disk.qcow2", "out.vma", cwd=tmp_path, env={**os.environ, "PATH": path})
    assert (done.code, listing(tmp_path)) == (3, before)
    assert "QEMU reads from other files for it than the image says" in done.err


def test_nobody_writes_to_a_raw_backing_file_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(content())
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", tmp_path / "disk.qcow2")
    command = [*PROGRAM, "run", "--speed", "4M", "disk.qcow2", "out.vma"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        wait_until(lambda: bool(list(tmp_path.glob(".out.vma.partial"))), "the archive", [])
        writer = subprocess.run(
            ["qemu-io", "-f", "raw", tmp_path / "base.img", "-c", "write 0 512"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert 'Failed to get "write" lock' in writer.stderr + writer.stdout
    assert process.returncode == 0


def test_an_encrypted_image(tmp_path: Path) -> None:
    secret = ("--object", "secret,id=key,data=secret", "-o", "encrypt.format=aes,encrypt.key-secret=key")
    qemu_img("create", "-q", *secret, "-f", "qcow2", tmp_path / "disk.qcow2", "1M")
    refused(tmp_path, 3, "disk.qcow2: it is encrypted", "disk.qcow2")


@pytest.mark.parametrize("kind", NEW, ids=str)
def test_an_image_that_was_cut_off(tmp_path: Path, kind: Kind) -> None:
    image = make(tmp_path, kind)
    content_of_file = image.read_bytes()
    image.write_bytes(content_of_file[: len(content_of_file) * 6 // 10])
    refused(tmp_path, 3, image.name, image.name)


@pytest.mark.parametrize("kind", NEW, ids=str)
def test_an_image_with_a_corrupt_header(tmp_path: Path, kind: Kind) -> None:
    image = make(tmp_path, kind)
    if kind.image_format != "qcow":  # of which nothing but the data itself is looked for
        image.write_bytes(image.read_bytes()[:4096] + bytes(100))
        refused(tmp_path, 3, image.name, image.name)
    image.write_bytes(b"\0" * image.stat().st_size)
    refused(tmp_path, 3, f"is called a {kind.image_format} image and does not look like that", image.name)


def test_names_and_magics_that_disagree(tmp_path: Path) -> None:
    image = make(tmp_path, QCOW2)
    image.rename(tmp_path / "disk.vmdk")
    refused(tmp_path, 3, "is called a vmdk image and looks like qcow2; --format qcow2", "disk.vmdk")
    (tmp_path / "disk.vmdk").rename(tmp_path / "disk.raw")
    refused(tmp_path, 3, "looks like a qcow2 image, and its name does not say so: --format qcow2", "disk.raw")
    refused(tmp_path, 3, "VMDK", "--format", "vmdk", "disk.raw")
    refused(tmp_path, 3, "No such file", "--format", "vdi", "missing.vdi")


@pytest.mark.parametrize("kind", [QCOW2, Kind("vdi", "vdi"), Kind("qcow", "qcow")], ids=str)
def test_block_devices_are_raw_unless_a_format_is_told(tmp_path: Path, kind: Kind) -> None:
    need("losetup")
    image = make(tmp_path, kind)
    device = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if device.returncode:
        pytest.skip(f"cannot set up a loop device: {device.stderr.strip()}")
    loop = device.stdout.strip()
    try:
        assert pybackup("run", f"disk={loop}", "out.vma", cwd=tmp_path).code == 0
        assert pybackup("run", "--format", kind.image_format, f"disk={loop}", "in.vma", cwd=tmp_path)[::2] == (0, "")
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)
    for archive, expected in (("out", image.read_bytes()), ("in", content())):
        assert pybackup("restore", f"{archive}.vma", f"{archive}.raw", cwd=tmp_path).code == 0
        assert (tmp_path / f"{archive}.raw").read_bytes() == expected


def test_a_filesystem_that_cannot_pass_by_the_page_cache(tmp_path: Path) -> None:
    place = tmp_path / "ramfs"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "ramfs", "none", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a ramfs: {mounted.stderr.decode().strip()}")
    try:
        image = make(place, QCOW2)
        assert pybackup("run", image, tmp_path / "out.vma")[::2] == (0, "")
        assert pybackup("compare", tmp_path / "out.vma", image).code == 0
    finally:
        subprocess.run(["umount", place], check=True)


def test_without_qemu(tmp_path: Path) -> None:
    make(tmp_path, QCOW2)
    done = pybackup("run", "disk.qcow2", "out.vma", cwd=tmp_path, env={"PATH": str(tmp_path)})
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "needs qemu-nbd, which is not installed (Debian's package qemu-utils has it)" in done.err


def test_a_large_image_takes_little_memory(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    noise = random.Random(1)
    with open(tmp_path / "noise.img", "wb") as file:
        for _ in range(300):
            file.write(noise.randbytes(1 << 20))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "noise.img", image)
    for arguments in (("run", image, tmp_path / "out.vma"), ("restore", tmp_path / "out.vma", tmp_path / "b.qcow2")):
        assert _peak(*arguments) < 150 << 20
    same_disk(image, "qcow2", tmp_path / "b.qcow2", "qcow2")


_MEASURE = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);" + (
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def _peak(*arguments: str | Path) -> int:
    """The most memory, in bytes, that the program or one of its children has used."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, *PROGRAM, *arguments], capture_output=True, check=True)
    return int(done.stdout) * 1024


def test_clusters_that_nothing_refers_to_are_a_note(tmp_path: Path) -> None:
    need("qemu-img")
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    with image.open("r+b") as file:
        # The last of four clusters is the first level's table; its successor is counted, and belongs to nothing.
        file.seek(2 * 65536 + 2 * 4)
        file.write(b"\0\1")
        file.truncate(5 * 65536)
    checked = subprocess.run(["qemu-img", "check", image], capture_output=True, check=False)
    assert checked.returncode == 3
    assert "clusters to which nothing refers" in pybackup("run", "-v", image, tmp_path / "a.vma").err
    assert pybackup("run", image, tmp_path / "b.vma") == (0, b"", "")
