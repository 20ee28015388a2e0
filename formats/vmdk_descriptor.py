"""The text in a VMDK that says which files it consists of (Virtual Disk Format 5.0), and what QEMU makes of it."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import FormatError

SIGNATURE = b"# Disk DescriptorFile"
MOST_BYTES = 1 << 20
"""Of a descriptor. QEMU takes no longer one as a file of its own."""
_PARENT_WITHIN = 20 * 512
"""QEMU looks for the parent in so many bytes of a descriptor."""
_EXTENT = re.compile(rb"[ \t]*(RW|RDONLY|NOACCESS)[ \t]+(\d+)[ \t]+(\w+)(?:[ \t]+\"([^\"\r\n]*)\"(?:[ \t]+(\d+))?)?")
_FLAT, _SPARSE = ("FLAT", "VMFS"), ("SPARSE", "VMFSSPARSE", "SESPARSE")
_MOST_DIGITS = 15
_ORPHAN = b"ffffffff"


class Extent(NamedTuple):
    """A part of the disk: ``size`` in bytes, ``kind`` as the descriptor calls it, ``offset`` of a flat one in bytes.

    ``line`` is the beginning of what stands there; ``is_read`` says whether QEMU takes notice of it.
    """

    size: int
    kind: str
    name: str
    offset: int
    line: str
    is_read: bool

    @property
    def is_flat(self) -> bool:
        """Whether it is the bytes of the disk and nothing else."""
        return self.kind in _FLAT


class Descriptor(NamedTuple):
    """``parent``: the parent's name as it stands there, None where there is none."""

    extents: tuple[Extent, ...]
    parent: str | None
    create_type: str


def parse_descriptor(text: bytes) -> Descriptor:
    """Read a descriptor (FormatError)."""
    text = text.partition(b"\0")[0]
    if not text.startswith(SIGNATURE):
        raise FormatError("it has no descriptor: it is an extent or a delta of a disk that another file describes")
    kind = _value(text, b"createType")
    if kind is None:
        raise FormatError("the descriptor does not say what kind of image it is")
    extents = tuple(_extent(line) for line in text.splitlines() if _is_extent(line))
    return Descriptor(extents, _parent(text), kind.decode(errors="replace"))


def _is_extent(line: bytes) -> bool:
    return line.lstrip().startswith((b"RW ", b"RW\t", b"RDONLY", b"NOACCESS"))


def _extent(line: bytes) -> Extent:
    told = line.decode(errors="replace").strip()
    found = _EXTENT.match(line)
    if found is None or len(found[2]) > _MOST_DIGITS or len(found[5] or b"") > _MOST_DIGITS:
        raise FormatError(f"the descriptor has an extent that cannot be read: {told[:80]!r}")
    access, sectors, kind, name, offset = found.groups()
    sort = kind.decode()
    is_read = access == b"RW" and sort in _FLAT + _SPARSE and bool(name)
    if int(sectors) < 1 or (is_read and (offset is not None) is not (sort == "FLAT")):
        raise FormatError(f"the descriptor has an extent that cannot be: {told[:80]!r}")
    named = (name or b"").decode(errors="surrogateescape")
    return Extent(int(sectors) * 512, sort, named, int(offset or 0) * 512, told[:80], is_read)


def _parent(text: bytes) -> str | None:
    hint = _value(text, b"parentFileNameHint")
    identity = _value(text, b"parentCID")
    if hint is None:
        if identity is not None and identity.lower() != _ORPHAN:
            raise FormatError("it is a delta, which holds only what its parent does not, and does not name the parent")
        return None
    if text.find(b"parentFileNameHint") != text[:_PARENT_WITHIN].find(b'parentFileNameHint="'):
        raise FormatError("QEMU does not find the name of its parent, for it does not stand where QEMU looks for it")
    return hint.decode(errors="surrogateescape")


def _value(text: bytes, key: bytes) -> bytes | None:
    found = re.search(rb"(?m)^[ \t]*" + key + rb"[ \t]*=[ \t]*\"?([^\"\r\n]*)", text)
    return found[1].strip() if found else None
