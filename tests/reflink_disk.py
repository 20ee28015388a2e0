"""A real filesystem with reflinks, on a loop device, where this user may mount."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KINDS = ("xfs", "btrfs")
SIZE = 400 << 20
"""Bytes, all hole: mkfs.xfs wants 300 MiB at least."""


@contextlib.contextmanager
def mounted(kind: str, need: Callable[..., None]) -> Iterator[Path]:
    """A new filesystem of this kind; the test is skipped, and says why, where it cannot be mounted.

    Not in a folder of pytest's: what is mounted there, should it stay, is in the way of every later run.
    """
    need(f"mkfs.{kind}", "mount", "umount")
    with tempfile.TemporaryDirectory(prefix=f"pybackup-{kind}-", ignore_cleanup_errors=True) as folder:
        yield from _mounted(kind, Path(folder))


def _mounted(kind: str, folder: Path) -> Iterator[Path]:
    image, where = folder / "image", folder / "mounted"
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True)
    where.mkdir()
    mount = subprocess.run(["mount", "-o", "loop", str(image), str(where)], capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"cannot mount {kind} on a loop device: {mount.stderr.strip()}")
    try:
        yield where
    finally:
        # Lazy: a test that failed may still have a file open.
        subprocess.run(["umount", "--lazy", str(where)], check=True)
