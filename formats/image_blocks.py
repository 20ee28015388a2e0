"""VDI and Parallels images: one table that says where each block lies."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial

from .errors import FormatError
from .image_layout import End, ImageBytes, Layout, blocks_for, greatest_end, table

_SECTOR = 512
_VDI = struct.Struct("<IIIII256xIIIIIIIQIIII16x16x16s16s")
"""From byte 64: signature, version, header size, type, flags; offsets of the map and of the data, cylinders, heads,
sectors, sector size, unused; sizes of disk, block and extra (bytes), blocks, blocks allocated; links."""
_VDI_AT = 64
_DYNAMIC, _STATIC = 1, 2
_VDI_KINDS = {3: "the undo file of another image", 4: "a differencing image, which holds only what its parent does not"}
_VDI_UNUSED = (0xFFFF_FFFF, 0xFFFF_FFFE)
_PARALLELS = struct.Struct("<16sIIIIIQIII")
"""Magic, version, heads, cylinders, sectors in a block, blocks, sectors, in use, offset of the data, flags."""
_PARALLELS_TABLE = 64
_IN_USE = 0x746F6E59
_BY_BLOCKS = b"WithouFreSpacExt"
"""The newer magic: the table counts in blocks, not in sectors."""


def vdi_layout(image: ImageBytes) -> Layout:
    """The layout of a VDI image (FormatError). Only VirtualBox finds the parents of differencing ones."""
    head = image.exactly(0, 512, "the header")
    signature, _, _, kind, _, at, data, *_, size, block, extra, blocks, _, link, parent = _VDI.unpack_from(
        head, _VDI_AT
    )
    if signature != 0xBEDA107F:
        raise FormatError("it is no VDI image")
    if kind in _VDI_KINDS:
        raise FormatError(f"it is {_VDI_KINDS[kind]}")
    if any(link) or any(parent):
        raise FormatError(f"it is {_VDI_KINDS[4]}")
    if kind not in (_DYNAMIC, _STATIC) or extra or blocks < blocks_for(size, block):
        raise FormatError("the header is not as it should be")
    return Layout(size, partial(_scan, image, size, at, block, _VDI_UNUSED, data, block))


def parallels_layout(image: ImageBytes) -> Layout:
    """The layout of a Parallels image (FormatError)."""
    head = image.exactly(0, _PARALLELS_TABLE, "the header")
    magic, _, _, _, tracks, blocks, sectors, in_use, _, _ = _PARALLELS.unpack_from(head)
    by_blocks = magic == _BY_BLOCKS
    if not by_blocks:
        sectors &= 0xFFFF_FFFF
    if magic not in (_BY_BLOCKS, b"WithoutFreeSpace"):
        raise FormatError("it is no Parallels image")
    size, block = sectors * _SECTOR, tracks * _SECTOR
    if blocks < blocks_for(size, block):
        raise FormatError(f"its table has {blocks:,} blocks, too few for its size of {size:,} bytes")
    unit = block if by_blocks else _SECTOR
    scan = partial(_scan, image, size, _PARALLELS_TABLE, block, (0,), 0, unit)
    return Layout(size, scan, unclosed=in_use == _IN_USE)


def _scan(
    image: ImageBytes, size: int, at: int, block: int, unused: tuple[int, ...], data: int, unit: int
) -> Iterator[End]:
    blocks = blocks_for(size, block)
    yield End(at + 4 * blocks)
    for first, piece in table(image, at, blocks, "I", big=False):
        yield End(greatest_end(first, piece, unused, lambda entry: data + entry * unit, block, size))
