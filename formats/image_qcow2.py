"""qcow2, after QEMU's docs/interop/qcow2.txt: where its clusters lie, and which other files it reads from."""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import zstandard

from .backing_files import HEAD_BYTES, backing_file, header_extension
from .errors import FormatError
from .image_layout import End, ImageBytes, Layout, OtherFile, Role, needed, table, whole_sectors

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
"""Magic, version, backing file (offset, length), cluster bits, size, encryption, L1 (entries, offset), refcount table
(offset, clusters), snapshots (number, offset)."""
_FEATURES = struct.Struct(">Q")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_DATA_FILE_NAME = 0x44415441
_MOST_L1 = 32 << 20
"""Bytes of an L1 table: QEMU opens no larger one."""
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COPIED, _COMPRESSED, _ZERO = 1 << 63, 1 << 62, 1
_SECTOR = 512
_ZSTD = 1


def has_snapshots(head: bytes) -> bool:
    """Whether an image that begins so is a qcow2 with internal snapshots."""
    if len(head) < _HEADER.size or not head.startswith(b"QFI\xfb"):
        return False
    return bool(_HEADER.unpack_from(head)[11])


@dataclass(frozen=True, slots=True)
class _Qcow2:
    image: ImageBytes
    version: int
    bits: int
    size: int
    l1_entries: int
    l1_offset: int
    features: int
    compression: int

    @property
    def cluster(self) -> int:
        return 1 << self.bits

    @property
    def entry_words(self) -> int:
        return 2 if self.features & _EXTENDED_L2 else 1

    @property
    def in_data_file(self) -> bool:
        return bool(self.features & _DATA_FILE)

    def scan(self) -> Iterator[End]:
        per_table = self.cluster // (8 * self.entry_words)
        tables = -(-self.size // (per_table * self.cluster))
        if self.l1_entries < tables:
            raise FormatError("its L1 table is too short for the disk")
        before = 0
        for first, piece in table(self.image, self.l1_offset, tables, "Q", big=True):
            yield End(self.l1_offset + 8 * (first + len(piece)))
            for number, entry in enumerate(piece, first):
                offset = entry & _OFFSET
                if offset and offset != before:
                    yield End(offset + self.cluster)
                    yield from self._table_ends(offset, number * per_table)
                    # The same table again and again is what no writer makes; it is read once.
                    before = offset

    def _table_ends(self, offset: int, first: int) -> Iterator[End]:
        content = self.image.exactly(offset, self.cluster, "an L2 table")
        if not any(content):
            return
        words = array("Q", content)
        if sys.byteorder == "little":
            words.byteswap()
        if self.entry_words == 2:
            yield from self._extended_ends(words)
        else:
            yield from self._ends(words, first)
        yield from self._compressed_end(words[:: self.entry_words])

    def _ends(self, words: array[int], first: int) -> Iterator[End]:
        """Of clusters that are there as they are. Zero clusters are not read; version 2 knows none."""
        skipped = _COMPRESSED | (_ZERO if self.version > 2 else 0)
        last = -(-self.size // self.cluster) - 1 - first
        for clusters, length in (
            (words[: max(0, last)], self.cluster),
            (words[max(0, last) : last + 1], needed(first + last, self.cluster, self.size)),
        ):
            used = [word & _OFFSET for word in clusters if word and not word & skipped]
            if used and (self.in_data_file or any(used)):
                yield End(max(used) + length, self.in_data_file)

    def _extended_ends(self, words: array[int]) -> Iterator[End]:
        part = self.cluster // 32
        end = 0
        for word, states in zip(words[::2], words[1::2], strict=True):
            allocated = states & 0xFFFF_FFFF
            if allocated and not word & _COMPRESSED:
                end = max(end, (word & _OFFSET) + allocated.bit_length() * part)
        if end:
            yield End(min(end, self.size) if self.in_data_file else end, self.in_data_file)

    def _compressed_end(self, words: array[int]) -> Iterator[End]:
        """Of the compressed cluster that lies furthest behind: they do not overlap."""
        shift = 70 - self.bits
        mask = (1 << shift) - 1
        found = max((word & (_COMPRESSED - 1) for word in words if word & _COMPRESSED), key=mask.__and__, default=None)
        if found is None:
            return
        offset, sectors = found & mask, (found >> shift) + 1
        end = offset // _SECTOR * _SECTOR + sectors * _SECTOR
        if end - _SECTOR < self.image.size < end and self._unpacks(offset):
            end = self.image.size  # its last sector need not be there whole
        yield End(end)

    def _unpacks(self, offset: int) -> bool:
        packed = self.image.read(offset, self.image.size - offset)
        try:
            if self.compression == _ZSTD:
                content = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
            else:
                content = zlib.decompressobj(-15).decompress(packed, self.cluster)
        except (zlib.error, zstandard.ZstdError):
            return False
        return len(content) >= self.cluster


def qcow2_layout(image: ImageBytes) -> Layout:
    """The layout of a qcow2 image (FormatError)."""
    head = image.read(0, HEAD_BYTES)
    if len(head) < _HEADER.size or head[:4] != b"QFI\xfb":
        raise FormatError("it is no qcow2 image")
    _, version, _, _, bits, size, _, l1_entries, l1_offset, *_ = _HEADER.unpack_from(head)
    if not 9 <= bits <= 21 or version not in (2, 3) or l1_entries * 8 > _MOST_L1:
        raise FormatError("the header is not as it should be")
    (features,) = _FEATURES.unpack_from(head.ljust(80, b"\0"), 72) if version > 2 else (0,)
    if features & ~(_DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2):
        raise FormatError("it has features that are not known")
    compression = head.ljust(105, b"\0")[104] if features & _COMPRESSION else 0
    found = _Qcow2(image, version, bits, size, l1_entries, l1_offset, features, compression)
    return Layout(whole_sectors(size), found.scan, tuple(_files(head, features)), unclosed=bool(features & _DIRTY))


def _files(head: bytes, features: int) -> Iterator[OtherFile]:
    if features & _DATA_FILE:
        name = header_extension(head, _DATA_FILE_NAME)
        if not name:
            raise FormatError("it has its data in another file, and does not say in which")
        yield OtherFile(Role.DATA, name.decode(errors="surrogateescape"), "raw")
    backing = backing_file(head, "qcow2")
    if backing is not None:
        yield OtherFile(Role.BACKING, backing.name, backing.image_format)
