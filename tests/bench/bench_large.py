"""A tebibyte with 100 GiB in it, through nights, a merge and a restore: what memory that takes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import Cost, Table, run

PYBACKUP = str(Path(sys.executable).with_name("pybackup"))
SIZE, USED = 1 << 40, 100 << 30
LIMIT = 200
"""MiB."""


def measure(table: Table, folder: Path) -> None:
    """Fill the table: each row's seconds stand among the figures."""
    with tempfile.TemporaryDirectory(dir=folder) as private:
        archives = [f"{private}/night-{number}.vma.zst" for number in range(3)]
        quiet = [PYBACKUP, "run", "-q", "--level", "1"]
        with disk(private, 0) as uri:
            row(table, "a full archive", run([*quiet, f"d={uri}", archives[0]]))
        for night in (1, 2):
            with disk(private, night) as uri:
                command = [*quiet, "--base", archives[night - 1], f"d={uri}", archives[night]]
                row(table, f"night {night} by digest", run(command))
                if night == 2:
                    restore = [PYBACKUP, "restore", "-q", "--force", archives[night], uri]
                    row(table, "`restore` of both nights", run(restore))
        merged = f"{private}/merged.vma.zst"
        row(table, "`merge` of both nights", run([PYBACKUP, "merge", "-q", "--level", "1", archives[-1], merged]))
        row(table, "`verify` of what was merged", run([PYBACKUP, "verify", "-q", merged]))


def row(table: Table, work: str, cost: Cost) -> None:
    """How much memory it took, and how long."""
    table.row(f"{work}, peak memory", "MiB", LIMIT, cost.peak, f"{cost.peak:.0f} MiB, {cost.wall:.0f} s")


@contextlib.contextmanager
def disk(folder: str, night: int) -> Iterator[str]:
    """The disk as it is in that night: its URI."""
    path = f"{folder}/disk-{night}"
    command = [sys.executable, str(Path(__file__).with_name("big_disk.py")), path, str(SIZE), str(USED), str(night)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate()
