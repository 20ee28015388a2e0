"""Our eye for foreign formats against images that qemu-img has made."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pybackup.core.images.probe import HEAD_BYTES, TAIL_BYTES, image_format

IMAGES = [
    ("qcow2", "qcow2", ""),
    ("qcow", "qcow", ""),
    ("vmdk", "vmdk", "subformat=monolithicSparse"),
    ("vmdk", "vmdk", "subformat=monolithicFlat"),
    ("vmdk", "vmdk", "subformat=streamOptimized"),
    ("vdi", "vdi", ""),
    ("vhdx", "vhdx", ""),
    ("vpc", "vpc", "subformat=dynamic"),
    ("vpc", "vpc", "subformat=fixed"),
    ("qed", "qed", ""),
    ("parallels", "parallels", ""),
    ("luks", None, "key-secret=sec0,iter-time=10"),
    ("raw", None, ""),
]


@pytest.mark.parametrize("made, seen, options", IMAGES)
def test_images_of_qemu(tmp_path: Path, need: Callable[..., None], made: str, seen: str | None, options: str) -> None:
    need("qemu-img")
    path = tmp_path / "disk"
    command = ["qemu-img", "create", "-q", "--object", "secret,id=sec0,data=x", "-f", made]
    done = subprocess.run(
        [*command, *(["-o", options] if options else []), str(path), "4M"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this qemu-img does not make {made}: {done.stderr.strip()}")
    data = path.read_bytes()
    assert image_format(data[:HEAD_BYTES], data[-TAIL_BYTES:]) == seen
