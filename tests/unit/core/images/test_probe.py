from __future__ import annotations

import pytest

from pybackup.core.images.probe import image_format, suffix_format
from pybackup.core.sinks.archive_evidence import archive_format


@pytest.mark.parametrize(
    "head, name",
    [
        (b"QFI\xfb\0\0\0\3", "qcow2"),
        (b"QFI\xfb\0\0\0\1", "qcow"),
        (b"KDMV\1", "vmdk"),
        (b"COWD\1", "vmdk"),
        (b"# Disk DescriptorFile\n", "vmdk"),
        (b"<<< VDI >>>".ljust(64, b"\0") + b"\x7f\x10\xda\xbe", "vdi"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (b"QED\0", "qed"),
        (b"WithoutFreeSpace", "parallels"),
        (b"WithouFreSpacExt", "parallels"),
        (b"LUKS\xba\xbe\0\2", None),
        (b"\xeb\x63\x90".ljust(510, b"\0") + b"\x55\xaa", None),
        (b"QFI", None),
        (b"", None),
        (bytes(4096), None),
    ],
)
def test_magic(head: bytes, name: str | None) -> None:
    assert image_format(head) == name


def test_a_fixed_vhd_is_known_by_its_end_only() -> None:
    assert image_format(bytes(512), b"conectix".ljust(512, b"\0")) == "vpc"
    assert image_format(bytes(512), b"conectix".ljust(513, b"\0")) is None


@pytest.mark.parametrize(
    "head, name", [(b"VMA\0", "vma"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x1f\x8b\x08", "gzip"), (b"VMAE", None)]
)
def test_archives(head: bytes, name: str | None) -> None:
    assert archive_format(head) == name
    assert image_format(head) is None


@pytest.mark.parametrize(
    "path, name", [("a.QCOW2", "qcow2"), ("/x.vhd/disk.img", None), ("d.raw", None), ("d.vhd", "vpc")]
)
def test_suffix(path: str, name: str | None) -> None:
    assert suffix_format(path) == name
