"""VHD (Virtual Hard Disk Image Format Specification 1.0): its two sizes, and where its blocks lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from .errors import FormatError
from .image_layout import End, ImageBytes, Layout, blocks_for, greatest_end, table, whole_sectors

_SECTOR = 512
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBI")
"""Cookie, features, version, offset of the dynamic header, time, creator, its version and system, sizes (original,
current), geometry (cylinders, heads, sectors), type."""
_DYNAMIC_HEADER = struct.Struct(">8sQQIII")
"""Cookie, unused, offset of the table, version, entries, bytes in a block."""
_COOKIE = b"conectix"
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_UNUSED = 0xFFFF_FFFF
_MOST_SECTORS = 65535 * 16 * 255
"""The largest geometry; it stands for any size."""
_BY_SIZE = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS")
"""Creators whose geometry nobody goes by. QEMU goes by that of all others, and so may cut off the end of a disk."""


class _Footer(NamedTuple):
    """``stored`` and ``geometry``: the two sizes in bytes."""

    kind: int
    header: int
    creator: bytes
    stored: int
    geometry: int


def vhd_layout(image: ImageBytes) -> Layout:
    """The layout of a VHD (FormatError). Of its two sizes the disk gets the larger one that the file can hold."""
    footer = _footer(image)
    if footer.kind == _DIFFERENCING:
        raise FormatError("it is a differencing image, which holds only what its parent does not: merge it first")
    if footer.kind == _FIXED:
        size = _chosen(footer, image.size // _SECTOR * _SECTOR - _SECTOR)
        return Layout(size, partial(iter, (End(size + _SECTOR - 1),)), options=_options(footer, size))
    if footer.kind != _DYNAMIC:
        raise FormatError(f"it is of type {footer.kind}, which is not known")
    head = image.exactly(footer.header, _DYNAMIC_HEADER.size, "the dynamic header")
    cookie, _, at, _, entries, block = _DYNAMIC_HEADER.unpack(head)
    if cookie != b"cxsparse" or block < _SECTOR or block % _SECTOR:
        raise FormatError("the dynamic header is not as it should be")
    size = _chosen(footer, entries * block)
    return Layout(size, partial(_scan, image, size, at, block), options=_options(footer, size))


def _footer(image: ImageBytes) -> _Footer:
    """From the end, where it belongs; a dynamic disk has a copy at the beginning, which must not say another thing."""
    tail = _parsed(image.read(max(0, image.size - _SECTOR), _SECTOR)) or _parsed(
        # An old one has 511 bytes.
        image.read(max(0, image.size - _SECTOR + 1), _SECTOR - 1)
    )
    head = _parsed(image.read(0, _SECTOR))
    found = head or tail
    if found is None:
        raise FormatError("it is no VHD")
    if head is not None and tail is not None and head != tail:
        raise FormatError("its first and its last sector say different things of the disk")
    return found


def _parsed(sector: bytes) -> _Footer | None:
    if len(sector) < _SECTOR - 1 or not sector.startswith(_COOKIE):
        return None
    _, _, _, header, _, creator, _, _, _, stored, cylinders, heads, sectors, kind = _FOOTER.unpack_from(sector)
    return _Footer(kind, header, creator, stored, cylinders * heads * sectors * _SECTOR)


def _chosen(footer: _Footer, room: int) -> int:
    """Who goes by the geometry sees no more than that, who goes by the stored size sees all of that."""
    by_size = footer.creator in _BY_SIZE or footer.geometry in (0, _MOST_SECTORS * _SECTOR)
    if footer.stored < footer.geometry <= room and not by_size:
        return footer.geometry
    return whole_sectors(footer.stored)


def _options(footer: _Footer, size: int) -> dict[str, str]:
    return {"force_size_calc": "chs" if size == footer.geometry else "current_size"}


def _scan(image: ImageBytes, size: int, at: int, block: int) -> Iterator[End]:
    bitmap = -(-block // (8 * _SECTOR * _SECTOR)) * _SECTOR
    blocks = blocks_for(size, block)
    yield End(at + 4 * blocks)
    for first, piece in table(image, at, blocks, "I", big=True):
        yield End(greatest_end(first, piece, (_UNUSED,), lambda entry: entry * _SECTOR + bitmap, block, size))
