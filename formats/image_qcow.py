"""qcow, the first one, and QED, which both map clusters by two levels of tables."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial

from .backing_files import HEAD_BYTES, backing_file
from .errors import FormatError
from .image_layout import End, ImageBytes, Layout, OtherFile, Role, blocks_for, greatest_end, table, whole_sectors

_QCOW = struct.Struct(">4sIQIIQBBHIQ")
"""Magic, version, backing file (offset, length), time, size, cluster bits, L2 bits, unused, encryption, L1's offset."""
_COMPRESSED = 1 << 63
_QED = struct.Struct("<4sIIIQQQQQ")
"""Magic, cluster size, table size, header size (clusters), three sets of features, L1's offset, size of the disk."""
_QED_NEED_CHECK = 2


def qcow_layout(image: ImageBytes) -> Layout:
    """The layout of a qcow image (FormatError)."""
    head = image.read(0, HEAD_BYTES)
    if len(head) < _QCOW.size or head[:8] != b"QFI\xfb\0\0\0\1":
        raise FormatError("it is no qcow image")
    *_, size, bits, l2_bits, _, _, l1 = _QCOW.unpack_from(head)
    if not 9 <= bits <= 16 or not 6 <= l2_bits <= 13:
        raise FormatError("the header is not as it should be")
    return Layout(whole_sectors(size), partial(_scan_qcow, image, size, bits, l2_bits, l1), _backing(head, "qcow"))


def _scan_qcow(image: ImageBytes, size: int, bits: int, l2_bits: int, l1: int) -> Iterator[End]:
    cluster, shift = 1 << bits, 63 - bits
    for first, offset in _tables(image, l1, blocks_for(size, 1 << bits + l2_bits)):
        yield End(offset + (8 << l2_bits))
        for at, piece in table(image, offset, 1 << l2_bits, "Q", big=True):
            packed = [entry & _COMPRESSED - 1 for entry in piece if entry & _COMPRESSED]
            yield from (End((one & (1 << shift) - 1) + (one >> shift)) for one in packed)
            for index, entry in enumerate(piece):
                if entry & _COMPRESSED:
                    piece[index] = 0
            yield End(greatest_end((first << l2_bits) + at, piece, (0,), int, cluster, size))


def qed_layout(image: ImageBytes) -> Layout:
    """The layout of a QED image (FormatError)."""
    head = image.read(0, HEAD_BYTES)
    if len(head) < _QED.size or head[:4] != b"QED\0":
        raise FormatError("it is no QED image")
    _, cluster, clusters, _, features, _, _, l1, size = _QED.unpack_from(head)
    entries = cluster * clusters // 8
    if not 4096 <= cluster <= 64 << 20 or not 1 <= clusters <= 16 or size > cluster * entries * entries:
        raise FormatError("the header is not as it should be")
    return Layout(
        size,
        partial(_scan_qed, image, size, cluster, entries, l1),
        _backing(head, "qed"),
        unclosed=bool(features & _QED_NEED_CHECK),
    )


def _scan_qed(image: ImageBytes, size: int, cluster: int, entries: int, l1: int) -> Iterator[End]:
    for first, offset in _tables(image, l1, blocks_for(size, cluster * entries), big=False):
        yield End(offset + entries * 8)
        for at, piece in table(image, offset, entries, "Q", big=False):
            yield End(greatest_end(first * entries + at, piece, (0, 1), int, cluster, size))


def _tables(image: ImageBytes, l1: int, count: int, *, big: bool = True) -> Iterator[tuple[int, int]]:
    """(number, offset) of all tables of the second level; the same one twice in a row only once."""
    before = 0
    for first, piece in table(image, l1, count, "Q", big=big):
        for number, offset in enumerate(piece, first):
            if offset and offset != before:
                yield number, offset
                before = offset


def _backing(head: bytes, image_format: str) -> tuple[OtherFile, ...]:
    found = backing_file(head, image_format)
    return () if found is None else (OtherFile(Role.BACKING, found.name, found.image_format),)
