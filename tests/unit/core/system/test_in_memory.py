from __future__ import annotations

import os
from pathlib import Path

import pytest

from pybackup.core.system.in_memory import lies_in_memory

TABLE = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 {device} / /here rw,nosuid shared:2 master:1 - {kind} source rw,size=1k
24 22 {device} / /there rw - ext4 source rw
"""


@pytest.mark.parametrize("kind, expected", [("tmpfs", True), ("ramfs", True), ("xfs", False), ("fuse.tmpfs", False)])
def test_the_kind_is_taken_from_the_table_of_mounts(tmp_path: Path, kind: str, expected: bool) -> None:
    file = tmp_path / "disk.img"
    file.touch()
    device = file.stat().st_dev
    table = tmp_path / "mountinfo"
    table.write_text(TABLE.format(device=f"{os.major(device)}:{os.minor(device)}", kind=kind))
    with file.open() as opened:
        assert lies_in_memory(opened.fileno(), table) is expected


@pytest.mark.parametrize("table", ["", "22 1 999:999 / / rw - tmpfs x rw\n", "cut off", "1 2 {device} - \n"])
def test_what_cannot_be_known_is_no(tmp_path: Path, table: str) -> None:
    path = tmp_path / "mountinfo"
    with path.open("w+") as opened:
        device = os.fstat(opened.fileno()).st_dev
        path.write_text(table.format(device=f"{os.major(device)}:{os.minor(device)}"))
        assert not lies_in_memory(opened.fileno(), path)
        assert not lies_in_memory(opened.fileno(), tmp_path / "none")


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="/dev/shm is not a filesystem of its own")
def test_the_kernels_own_table() -> None:
    descriptor = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    try:
        assert lies_in_memory(descriptor)
    finally:
        os.close(descriptor)
