"""VMDK (Virtual Disk Format 5.0): a descriptor, and extents, which lie in the same file or in others."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from .errors import FormatError
from .image_layout import End, ImageBytes, Layout, OtherFile, Role, blocks_for, needed, table
from .vmdk_descriptor import MOST_BYTES, SIGNATURE, Extent, parse_descriptor

SPARSE_EXTENT = "vmdk extent"
"""The format of a sparse extent in a file of its own, which no program opens as a disk."""
_SECTOR = 512
_HOSTED = struct.Struct("<4sIIQQQQIQQQB4sH")
"""Magic, version, flags; capacity, grain, descriptor (offset, size) in sectors; entries of a grain table; offsets of
the spare directory, of the directory and of the data; unclean, characters of line ends, compression."""
_ESX = struct.Struct("<4sIIIIII")
"""Magic, version, flags; capacity and grain in sectors, offset of the directory, its entries."""
_ESX_TABLE = 4096
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_FOOTER_FROM_END = 1024
_COMPRESSED, _MARKERS, _ZERO_GRAINS = 1 << 16, 1 << 17, 1 << 2
_GRAIN_MARKER = struct.Struct("<QI")
_MOST_DIRECTORY = 512 << 20 >> 2


@dataclass(frozen=True, slots=True)
class _Sparse:
    """A sparse extent; ``size``, ``grain``, ``directory`` and ``data`` in bytes."""

    image: ImageBytes
    size: int
    grain: int
    entries: int
    directory: int
    descriptor: int
    flags: int
    unused: tuple[int, ...]

    def scan(self) -> Iterator[End]:
        """As Layout.scan."""
        tables = blocks_for(self.size, self.grain * self.entries)
        if tables > _MOST_DIRECTORY:
            raise FormatError("its directory is too large")
        for first, piece in table(self.image, self.directory, tables, "I", big=False):
            for number, sector in enumerate(piece, first):
                if sector:
                    yield from self._table_ends(number * self.entries, sector * _SECTOR)

    def _table_ends(self, first: int, at: int) -> Iterator[End]:
        count = min(self.entries, blocks_for(self.size, self.grain) - first)
        yield End(at + 4 * count)
        for behind, piece in table(self.image, at, count, "I", big=False):
            furthest = max((one for one in piece[:-1] if one not in self.unused), default=None)
            if furthest is not None:
                yield self._grain_end(furthest, self.grain)
            if piece[-1] not in self.unused:
                number = first + behind + len(piece) - 1
                yield self._grain_end(piece[-1], needed(number, self.grain, self.size))

    def _grain_end(self, sector: int, length: int) -> End:
        at = sector * _SECTOR
        if self.flags & _COMPRESSED:
            if not self.flags & _MARKERS:
                return End(at)  # how long it is, is told nowhere
            _, length = _GRAIN_MARKER.unpack(self.image.exactly(at, _GRAIN_MARKER.size, "a part of its data"))
            return End(at + _GRAIN_MARKER.size + length)
        return End(at + length)


def vmdk_layout(image: ImageBytes) -> Layout:
    """The layout of a VMDK: of its descriptor, which must be there (FormatError)."""
    if image.read(0, len(SIGNATURE)) == SIGNATURE:
        return _described(image.read(0, MOST_BYTES))
    found = _sparse(image)
    text = image.read(found.descriptor, MOST_BYTES) if found.descriptor else b""
    if not found.size:
        return _described(text)
    told = parse_descriptor(text)
    if len(told.extents) > 1 or any(extent.is_flat for extent in told.extents):
        raise FormatError("its descriptor names other files, which nobody would read")
    if sum(extent.size for extent in told.extents) > found.size:
        raise FormatError("its header says a smaller size than its descriptor")
    return Layout(found.size, found.scan, _parents(told.parent))


def vmdk_extent_layout(image: ImageBytes) -> Layout:
    """The layout of a sparse extent in a file of its own (FormatError)."""
    found = _sparse(image)
    if not found.size:
        raise FormatError("it is an extent without a size")
    return Layout(found.size, found.scan)


def _described(text: bytes) -> Layout:
    if len(text) == MOST_BYTES and b"\0" not in text:
        raise FormatError(f"its descriptor has more than {MOST_BYTES:,} bytes")
    told = parse_descriptor(text)
    for extent in told.extents:
        if not extent.is_read:
            raise FormatError(
                f"QEMU passes over the extent {extent.line!r}, and the rest of the disk would lie elsewhere"
            )
    if any(extent.kind == "SESPARSE" for extent in told.extents):
        raise FormatError("it has extents of the kind SESPARSE, of which cannot be told whether they are complete")
    files = tuple(_other_file(extent) for extent in told.extents)
    size = sum(extent.size for extent in told.extents)
    return Layout(size, partial(iter, ()), files + _parents(told.parent))


def _other_file(extent: Extent) -> OtherFile:
    if extent.is_flat:
        return OtherFile(Role.EXTENT, extent.name, "raw", extent.offset + extent.size)
    return OtherFile(Role.EXTENT, extent.name, SPARSE_EXTENT, disk_size=extent.size)


def _parents(name: str | None) -> tuple[OtherFile, ...]:
    return () if name is None else (OtherFile(Role.BACKING, name, "vmdk"),)


def _sparse(image: ImageBytes) -> _Sparse:
    head = image.read(0, _SECTOR)
    if head[:4] == b"COWD":
        return _esx(image, head)
    if head[:4] != b"KDMV":
        raise FormatError("it is no VMDK")
    return _hosted(image, head)


def _hosted(image: ImageBytes, head: bytes) -> _Sparse:
    if len(head) < _SECTOR:
        raise FormatError("its header is not complete")
    capacity, grain, descriptor, descriptor_size, entries, _, directory, *_ = _HOSTED.unpack_from(head)[3:]
    if directory == _AT_END:
        head = image.exactly(max(0, image.size - _FOOTER_FROM_END), _SECTOR, "its footer")
        if head[:4] != b"KDMV":
            raise FormatError("its footer is not at its end")
        capacity, grain, _, _, entries, _, directory, *_ = _HOSTED.unpack_from(head)[3:]
    _, _, flags = _HOSTED.unpack_from(head)[:3]
    if capacity and (not 1 <= grain <= 1 << 17 or not 1 <= entries <= 512):
        raise FormatError("its header is not as it should be")
    unused = (0, 1) if flags & _ZERO_GRAINS else (0,)
    at = descriptor * _SECTOR if descriptor_size or not capacity else 0
    return _Sparse(image, capacity * _SECTOR, grain * _SECTOR, entries, directory * _SECTOR, at, flags, unused)


def _esx(image: ImageBytes, head: bytes) -> _Sparse:
    if len(head) < _ESX.size:
        raise FormatError("its header is not complete")
    _, _, _, capacity, grain, directory, _ = _ESX.unpack_from(head)
    if not capacity or not 1 <= grain <= 1 << 17:
        raise FormatError("its header is not as it should be")
    return _Sparse(image, capacity * _SECTOR, grain * _SECTOR, _ESX_TABLE, directory * _SECTOR, 0, 0, (0,))
