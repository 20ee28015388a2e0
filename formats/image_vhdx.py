"""VHDX (MS-VHDX): what its metadata says of the disk, and where its blocks lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from uuid import UUID

from .errors import FormatError
from .image_layout import End, ImageBytes, Layout, blocks_for, needed, table

_REGION_TABLES = (192 << 10, 256 << 10)
_REGION = struct.Struct("<16sQII")
_ITEM = struct.Struct("<16sIIII")
_MOST_ENTRIES = 2047
_HEADERS = (64 << 10, 128 << 10)
_BLOCKS = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08").bytes_le
_METADATA = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E").bytes_le
_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B").bytes_le
_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8").bytes_le
_LOGICAL_SECTOR = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F").bytes_le
_PARENT = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C").bytes_le
_HAS_PARENT = 2
_PRESENT, _PARTLY_PRESENT = 6, 7
_PLACE = ~((1 << 20) - 1)
_DIFFERENCING = "it is a differencing image, which holds only what its parent does not: merge it first"


def vhdx_layout(image: ImageBytes) -> Layout:
    """The layout of a VHDX (FormatError)."""
    if image.read(0, 8) != b"vhdxfile":
        raise FormatError("it is no VHDX")
    regions = _regions(image)
    items = _items(image, regions[_METADATA])
    try:
        block, bits = struct.unpack_from("<II", items[_PARAMETERS])
        (size,) = struct.unpack_from("<Q", items[_SIZE])
        (sector,) = struct.unpack_from("<I", items[_LOGICAL_SECTOR])
    except (KeyError, struct.error):
        raise FormatError("its metadata is not complete") from None
    if bits & _HAS_PARENT or _PARENT in items:
        raise FormatError(_DIFFERENCING)
    if sector not in (512, 4096) or not 1 << 20 <= block <= 256 << 20 or block & (block - 1):
        raise FormatError("its metadata is not as it should be")
    return Layout(size, partial(_scan, image, regions[_BLOCKS], size, block, (sector << 23) // block))


def _regions(image: ImageBytes) -> dict[bytes, int]:
    """The offset of each region, of the first table of them that is one."""
    for at in _REGION_TABLES:
        head = image.read(at, 64 << 10)
        if head[:4] == b"regi" and len(head) == 64 << 10:
            (count,) = struct.unpack_from("<I", head, 8)
            entries = [_REGION.unpack_from(head, 16 + 32 * n) for n in range(min(count, _MOST_ENTRIES))]
            found = {identity: offset for identity, offset, *_ in entries}
            if _BLOCKS in found and _METADATA in found:
                return found
    raise FormatError("it has no region table")


def _items(image: ImageBytes, at: int) -> dict[bytes, bytes]:
    """The first bytes of each item of the metadata."""
    head = image.exactly(at, 64 << 10, "its metadata")
    if head[:8] != b"metadata":
        raise FormatError("its metadata is not where it should be")
    (count,) = struct.unpack_from("<H", head, 10)
    entries = [_ITEM.unpack_from(head, 32 + 32 * n) for n in range(min(count, _MOST_ENTRIES))]
    return {identity: image.read(at + offset, 64) for identity, offset, *_ in entries}


def _has_log(image: ImageBytes) -> bool:
    """Whether changes wait in the log, which may have to do with the table: who opens the image says so."""
    return any(image.read(at, 4) == b"head" and any(image.read(at + 48, 16)) for at in _HEADERS)


def _scan(image: ImageBytes, at: int, size: int, block: int, ratio: int) -> Iterator[End]:
    if _has_log(image):
        return
    blocks = blocks_for(size, block)
    entries = blocks + (blocks - 1) // ratio if blocks else 0
    yield End(at + 8 * entries)
    for first, piece in table(image, at, entries, "Q", big=False):
        for number, entry in enumerate(piece, first):
            is_bitmap = number % (ratio + 1) == ratio
            if is_bitmap or not entry:
                continue
            if entry & 7 == _PARTLY_PRESENT:
                raise FormatError(_DIFFERENCING)
            if entry & 7 == _PRESENT:
                yield End((entry & _PLACE) + needed(number - number // (ratio + 1), block, size))
