from __future__ import annotations

import os
from pathlib import Path

import pytest

from pybackup.core.system import disk_identity


def test_a_mark_is_there_until_it_is_taken_away(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as file:
        fd = file.fileno()
        if disk_identity.mark_of(fd) is None:
            assert not disk_identity.mark(fd, "x")
            pytest.skip("this filesystem has no extended attributes")
        assert disk_identity.mark_of(fd) == ""
        assert disk_identity.mark(fd, "0123")
        assert disk_identity.mark_of(fd) == "0123"
        disk_identity.unmark(fd)
        disk_identity.unmark(fd)
        assert disk_identity.mark_of(fd) == ""


def test_a_file_is_known_by_its_inode(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as file:
        assert disk_identity.told_of(file.fileno()) == f"inode {os.fstat(file.fileno()).st_ino}"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"dm/uuid": "LVM-abc\n", "wwid": "x\n"}, "dm/uuid LVM-abc"),
        ({"device/serial": " S3RIAL \n"}, "device/serial S3RIAL"),
        ({"wwid": "naa.5000\n"}, "wwid naa.5000"),
        ({"loop/backing_file": "/x/y.img\n"}, "loop/backing_file /x/y.img"),
        ({}, ""),
    ],
)
def test_a_device_is_known_by_what_sys_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], told: str
) -> None:
    folder = tmp_path / "dev" / "block" / "8:16"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    device = os.stat_result((0o060600, 1, 1, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": os.makedev(8, 16)})
    monkeypatch.setattr(disk_identity.os, "fstat", lambda fd: device)
    assert disk_identity.told_of(3, tmp_path) == told
