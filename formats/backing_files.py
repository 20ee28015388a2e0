"""What the header of a disk image says of its backing file, after QEMU's docs/interop/qcow2.txt and qed_spec.txt.

An image may name a backing file without the format of it, and QEMU then looks for one in its first bytes. Those were
perhaps written by a guest, who so could make QEMU open any file of the host. Who knows what the header says can refuse.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .errors import FormatError

HEAD_BYTES = (2 << 20) + 1024
"""Bytes from the start that backing_file() may need: a name lies in the first cluster, which has at most 2 MiB."""

_QCOW = struct.Struct(">4sIQI")
"""Magic, version, the offset of the backing file's name and its length in bytes (qcow and qcow2)."""
_QCOW2_HEADER_LENGTH = struct.Struct(">I")
_QCOW2_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_QED = struct.Struct("<4s12xQ32xII")
"""Magic, features, the offset of the backing file's name and its length in bytes."""
_QCOW_MAGIC = b"QFI\xfb"
_QED_MAGIC = b"QED\0"
_QED_BACKING_FILE = 1
_QED_IS_RAW = 4


class BackingFile(NamedTuple):
    """A backing file's name as the image has it; its format is None where the image does not tell."""

    name: str
    image_format: str | None


def backing_file(head: bytes, image_format: str) -> BackingFile | None:
    """The backing file that an image names; None where it has none, the format knows none, or it is no such image.

    ``head``: the first HEAD_BYTES of the image, or all of it. FormatError when the name is not where it should be.
    """
    if image_format == "qed":
        return _of_qed(head)
    return _of_qcow(head) if image_format in ("qcow", "qcow2") else None


def _of_qcow(head: bytes) -> BackingFile | None:
    if len(head) < _QCOW.size:
        return None
    magic, version, offset, length = _QCOW.unpack_from(head)
    if magic != _QCOW_MAGIC or not offset or not length:
        return None
    return BackingFile(_name(head, offset, length), _qcow2_format(head) if version > 1 else None)


def _qcow2_format(head: bytes) -> str | None:
    found = header_extension(head, _BACKING_FORMAT)
    return found.decode(errors="replace") if found else None


def header_extension(head: bytes, wanted: int) -> bytes | None:
    """What an extension of a qcow2 header holds; None where there is no such one."""
    at = 72
    if _QCOW.unpack_from(head)[1] > 2:
        at = _QCOW2_HEADER_LENGTH.unpack_from(head.ljust(104, b"\0"), 100)[0]
    while at + _QCOW2_EXTENSION.size <= len(head):
        kind, length = _QCOW2_EXTENSION.unpack_from(head, at)
        at += _QCOW2_EXTENSION.size
        if not kind:
            return None
        if kind == wanted:
            return head[at : at + length]
        at += -(-length // 8) * 8
    return None


def _of_qed(head: bytes) -> BackingFile | None:
    if len(head) < _QED.size:
        return None
    magic, features, offset, length = _QED.unpack_from(head)
    if magic != _QED_MAGIC or not features & _QED_BACKING_FILE:
        return None
    return BackingFile(_name(head, offset, length), "raw" if features & _QED_IS_RAW else None)


def _name(head: bytes, offset: int, length: int) -> str:
    name = head[offset : offset + length]
    if len(name) < length:
        raise FormatError("the name of its backing file is not where the header says")
    return name.decode(errors="surrogateescape")
