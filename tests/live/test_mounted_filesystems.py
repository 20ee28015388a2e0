"""A guest's filesystems, mounted by hand from the files of a mount: read-only, and found clean."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import pybackup


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def loop_device_of(image: Path) -> str:
    """A read-only loop device; skips where there can be none."""
    made = subprocess.run(["losetup", "--read-only", "--find", "--show", image], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device can be made here: {made.stderr}")
    return made.stdout.strip()


def test_ext4_and_xfs(need: Callable[..., None], tmp_path: Path) -> None:
    need("fusermount3", "losetup", "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair", "qemu-img")
    if os.geteuid() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("only root can mount, and needs /dev/fuse for it")
    content = tmp_path / "content"
    content.mkdir()
    (content / "file").write_bytes(os.urandom(300_000))
    disks = {"e": tmp_path / "e.img", "x": tmp_path / "x.img"}
    for disk, size in zip(disks.values(), (16 << 20, 320 << 20), strict=True):
        disk.touch()
        os.truncate(disk, size)
    run("mkfs.ext4", "-q", "-d", content, disks["e"])
    run("mkfs.xfs", "-q", disks["x"])
    assert pybackup("run", *disks.values(), tmp_path / "vm.vma").code == 0
    shown, inside = tmp_path / "shown", tmp_path / "inside"
    shown.mkdir()
    inside.mkdir()
    assert pybackup("mount", "--background", tmp_path / "vm.vma", shown).code == 0
    try:
        for name, options, check in (
            ("e", "ro,noload", ["e2fsck", "-fn"]),
            ("x", "ro,norecovery,nouuid", ["xfs_repair", "-n"]),
        ):
            run("qemu-img", "compare", "-f", "raw", "-F", "raw", shown / f"{name}.raw", disks[name])
            device = loop_device_of(shown / f"{name}.raw")
            try:
                run("mount", "-o", options, device, inside)
                names = sorted(os.listdir(inside))
                same = name == "x" or (inside / "file").read_bytes() == (content / "file").read_bytes()
                run("umount", inside)
                assert (names, same) == (["file", "lost+found"] if name == "e" else [], True)
                subprocess.run([*check, device], check=True, capture_output=True)
            finally:
                run("losetup", "--detach", device)
    finally:
        run("fusermount3", "-u", shown)
