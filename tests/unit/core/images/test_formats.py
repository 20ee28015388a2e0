"""Which format a source is read as: the table, line by line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pybackup.cli.advice import with_advice
from pybackup.core.errors import SourceError
from pybackup.core.images.formats import ALIASES, FORMATS, source_format

QCOW2 = b"QFI\xfb\0\0\0\3" + bytes(1000)
VDI = bytes(64) + b"\x7f\x10\xda\xbe" + bytes(1000)
FIXED_VHD = bytes(4096) + b"conectix" + bytes(504)
RAW = bytes(5000)


def file(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("disk", RAW, "raw"),
        ("disk.img", RAW, "raw"),
        ("disk.raw", b"", "raw"),
        ("disk.qcow2", QCOW2, "qcow2"),
        ("DISK.QCOW2", QCOW2, "qcow2"),
        ("disk.vdi", VDI, "vdi"),
        ("disk.vhd", FIXED_VHD, "vpc"),
    ],
)
def test_name_and_magic_agree(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert source_format(file(tmp_path, name, content), None) == expected


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("disk.img", QCOW2, "looks like a qcow2 image, and its name does not say so: --format qcow2"),
        ("disk", FIXED_VHD, "looks like a vpc image"),
        ("disk.qcow2", RAW, "is called a qcow2 image and does not look like that; --format raw"),
        ("disk.qcow2", b"", "is called a qcow2 image and does not look like that; --format raw"),
        ("disk.vmdk", VDI, "is called a vmdk image and looks like vdi; --format vdi reads it as that, --format raw"),
    ],
)
def test_name_and_magic_disagree(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    with pytest.raises(SourceError) as refused:
        source_format(file(tmp_path, name, content), None)
    assert sentence in with_advice(refused.value)


@pytest.mark.parametrize("told", ["raw", *FORMATS, *ALIASES])
def test_what_is_told_is_so(tmp_path: Path, told: str) -> None:
    assert source_format(file(tmp_path, "disk.vdi", QCOW2), told) == ALIASES.get(told, told)


def test_only_files_are_looked_at(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.qcow2")
    assert source_format(str(tmp_path / "fifo.qcow2"), None) == "raw"
    assert source_format(os.devnull, None) == "raw"
    for told in (None, "qcow2"):
        with pytest.raises(SourceError, match=r"missing\.qcow2: No such file"):
            source_format(str(tmp_path / "missing.qcow2"), told)
