"""Images of every format, made by qemu-img, and the qemu-nbd processes that have one open."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from pathlib import Path
from typing import NamedTuple

SIZE = 9 << 20


class Kind(NamedTuple):
    """A kind of image: QEMU's name of the format, the name's ending, options for qemu-img."""

    image_format: str
    suffix: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join((self.image_format, *(option.lstrip("-") for option in self.options)))


KINDS = [
    Kind("qcow2", "qcow2"),
    Kind("qcow2", "qcow2", ("-o", "compat=0.10")),
    Kind("qcow2", "qcow2", ("-o", "cluster_size=512")),
    Kind("qcow2", "qcow2", ("-o", "cluster_size=2M")),
    Kind("qcow2", "qcow2", ("-c",)),
    Kind("qcow2", "qcow2", ("-c", "-o", "compression_type=zstd")),
    Kind("qcow", "qcow"),
    Kind("vmdk", "vmdk"),
    Kind("vmdk", "vmdk", ("-o", "subformat=streamOptimized")),
    Kind("vmdk", "vmdk", ("-o", "subformat=twoGbMaxExtentSparse")),
    Kind("vmdk", "vmdk", ("-o", "subformat=monolithicFlat")),
    Kind("vdi", "vdi"),
    Kind("vdi", "vdi", ("-o", "static=on")),
    Kind("vhdx", "vhdx"),
    Kind("vhdx", "vhdx", ("-o", "subformat=fixed")),
    Kind("vpc", "vhd", ("-o", "force_size=on")),
    Kind("vpc", "vhd", ("-o", "subformat=fixed,force_size=on")),
    Kind("qed", "qed"),
    Kind("parallels", "hdd"),
]
NEW = [kind for kind in KINDS if kind.options in ((), ("-o", "force_size=on"))]
"""One of each format."""


def content(size: int = SIZE) -> bytes:
    """Data at the beginning, in the middle and at the very end, and holes between."""
    noise = random.Random(size)
    disk = bytearray(size)
    for at, length in ((0, 100_000), (3 << 20, 1 << 20), (size - 70_000, 70_000)):
        disk[at : at + length] = noise.randbytes(length)
    return bytes(disk)


def make(folder: Path, kind: Kind, name: str = "disk", size: int = SIZE) -> Path:
    """An image of this kind with content(); beside it NAME.img, the same disk, raw."""
    raw, image = folder / f"{name}.img", folder / f"{name}.{kind.suffix}"
    raw.write_bytes(content(size))
    qemu_img("convert", "-f", "raw", "-O", kind.image_format, *kind.options, raw, image)
    return image


def qemu_img(*arguments: str | Path) -> str:
    """What qemu-img says; it must succeed."""
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def same_disk(one: Path, its_format: str, other: Path, other_format: str) -> None:
    """Both hold the same disk, of the same size."""
    assert virtual_size(one, its_format) == virtual_size(other, other_format)
    qemu_img("compare", "-f", its_format, "-F", other_format, one, other)


def virtual_size(image: Path, image_format: str) -> int:
    """Bytes of the disk in an image."""
    size: int = json.loads(qemu_img("info", "--output=json", "-f", image_format, image))["virtual-size"]
    return size


def servers_of(path: Path) -> list[int]:
    """The processes that are qemu-nbd and have been given this image, or one in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"qemu-nbd") and (
                any(bytes(path) in word for word in words) or _has_open(process, path)
            ):
                found.append(int(process.name))
    return found


def _has_open(process: Path, path: Path) -> bool:
    """Whether a process has a file there open, which perhaps has no name yet."""
    return any(os.readlink(one).startswith(str(path)) for one in (process / "fd").iterdir())
