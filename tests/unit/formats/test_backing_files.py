"""What headers say of backing files; qemu-img's own are read in tests/conformance/test_foreign_sources.py."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.formats.backing_files import BackingFile, backing_file
from pybackup.formats.errors import FormatError


def qcow(version: int, name: bytes, extensions: bytes = b"", offset: int = 4096) -> bytes:
    head = struct.pack(">4sIQI", b"QFI\xfb", version, offset if name else 0, len(name))
    head = head.ljust(100 if version > 2 else 72, b"\0")
    if version > 2:
        head += struct.pack(">I", 112) + bytes(8)
    return (head + extensions).ljust(offset, b"\0") + name


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")


def qed(features: int, name: bytes, offset: int = 64) -> bytes:
    return (
        (b"QED\0".ljust(16, b"\0") + struct.pack("<Q", features)).ljust(56, b"\0")
        + struct.pack("<II", offset, len(name)).ljust(offset - 56, b"\0")
        + name
    )


@pytest.mark.parametrize("version", [2, 3])
def test_qcow2(version: int) -> None:
    told = extension(0x6803F857, b"feature names") + extension(0xE2792ACA, b"vmdk") + bytes(8)
    assert backing_file(qcow(version, b""), "qcow2") is None
    assert backing_file(qcow(version, b"base"), "qcow2") == BackingFile("base", None)
    assert backing_file(qcow(version, b"base", told), "qcow2") == BackingFile("base", "vmdk")
    assert backing_file(qcow(version, b"base", bytes(8) + told), "qcow2") == BackingFile("base", None)
    assert backing_file(qcow(version, b"\xff", told), "qcow2") == BackingFile("\udcff", "vmdk")


def test_qcow_never_tells_the_format() -> None:
    assert backing_file(qcow(1, b"base"), "qcow") == BackingFile("base", None)
    assert backing_file(qcow(1, b""), "qcow") is None


def test_qed() -> None:
    assert backing_file(qed(0, b"base"), "qed") is None
    assert backing_file(qed(1, b"base"), "qed") == BackingFile("base", None)
    assert backing_file(qed(5, b"base"), "qed") == BackingFile("base", "raw")


@pytest.mark.parametrize("head, image", [(qcow(3, b"base")[:-1], "qcow2"), (qed(1, b"base")[:-1], "qed")])
def test_a_name_that_is_not_there(head: bytes, image: str) -> None:
    with pytest.raises(FormatError, match="name of its backing file"):
        backing_file(head, image)


def test_other_formats_have_none() -> None:
    assert backing_file(qcow(3, b"base"), "vdi") is None


@given(st.binary(max_size=200), st.sampled_from([b"QFI\xfb", b"QED\0"]), st.sampled_from(["qcow", "qcow2", "qed"]))
def test_any_bytes(rest: bytes, magic: bytes, image: str) -> None:
    try:
        found = backing_file(magic + rest, image)
    except FormatError:
        return
    assert found is None or found.name.encode(errors="surrogateescape") in magic + rest


@pytest.mark.parametrize("image_format", ["qcow", "qcow2", "qed"])
def test_what_is_no_such_image_names_no_backing_file(image_format: str) -> None:
    assert backing_file(b"\xff" * 200, image_format) is None
