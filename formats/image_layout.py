"""What the tables of a disk image say: which other files it reads from, and how long the files have to be.

Programs that read images take what lies behind the end of a file for zeros, mostly without a word. So whoever wants to
know that all of a disk is there has to ask the image itself where its data ends.

Images are untrusted input: tables are read in pieces, and whatever cannot be is a FormatError.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from .errors import FormatError

SECTOR = 512
"""Bytes."""
TABLE_PIECE = 1 << 19
"""Bytes of a table that are read at once."""


class ImageBytes(NamedTuple):
    """The bytes of an image: ``read(offset, length)`` returns less where they end, ``size`` is in bytes."""

    read: Callable[[int, int], bytes]
    size: int

    def exactly(self, offset: int, length: int, what: str) -> bytes:
        """All these bytes (FormatError, which says of what they are)."""
        content = self.read(offset, length)
        if len(content) < length:
            raise FormatError(f"{what} lies behind the end of the file", offset)
        return content


class Role(StrEnum):
    """What another file is to an image."""

    BACKING = "backing file"
    """Holds what the image does not."""
    DATA = "data file"
    EXTENT = "extent"


class OtherFile(NamedTuple):
    """Another file that an image reads from. ``image_format`` is None where the image does not tell.

    ``needs``: bytes that it must have; 0 where only its own tables can tell. ``disk_size``: bytes of the disk in it, as
    the image has it; 0 where it does not tell.
    """

    role: Role
    name: str
    image_format: str | None
    needs: int = 0
    disk_size: int = 0


class End(NamedTuple):
    """Where something ends: bytes of the image's own file, or of its data file."""

    end: int
    in_data_file: bool = False


Scan: TypeAlias = Callable[[], Iterator[End]]


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header says, and ``scan``, which reads the tables: where data and tables end (FormatError).

    ``size``: bytes of the disk. ``unclosed``: it was not closed properly, and says so. ``options``: what QEMU has to
    be told to read all of the disk.
    """

    size: int
    scan: Scan
    files: tuple[OtherFile, ...] = ()
    unclosed: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


def table(image: ImageBytes, offset: int, count: int, code: str, *, big: bool) -> Iterator[tuple[int, array[int]]]:
    """The entries of a table in pieces, each with the number of its first one (FormatError).

    ``code``: "I" for 32 bits, "Q" for 64; ``big``: whether they are big-endian.
    """
    width = array(code).itemsize
    for first in range(0, count, TABLE_PIECE // width):
        length = min(TABLE_PIECE, (count - first) * width)
        piece = array(code, image.exactly(offset + first * width, length, "a part of its tables"))
        if big == (sys.byteorder == "little"):
            piece.byteswap()
        yield first, piece


def whole_sectors(size: int) -> int:
    """The size of a disk, in bytes (FormatError where QEMU would cut off its end, for it counts in sectors)."""
    if size % SECTOR:
        raise FormatError(f"its size of {size:,} bytes is no multiple of {SECTOR}")
    return size


def needed(block: int, block_size: int, disk_size: int) -> int:
    """Bytes of a block that belong to the disk: the last one may be longer than that, and need not be there whole."""
    return max(0, min(block_size, disk_size - block * block_size))


def blocks_for(disk_size: int, block_size: int) -> int:
    """How many blocks make the disk."""
    if block_size < 1:
        raise FormatError("its blocks have no size")
    return -(-disk_size // block_size)


def greatest_end(
    first: int, places: array[int], unused: tuple[int, ...], place: Callable[[int], int], block_size: int, size: int
) -> int:
    """The end of what lies furthest behind, of the blocks of a piece of a table; 0 where all are unused.

    ``place`` makes the offset of a block's data, in bytes, of an entry.
    """
    last = -(-size // block_size) - 1 - first
    inner = places[:last] if last < len(places) else places
    end = max((one for one in inner if one not in unused), default=None)
    found = 0 if end is None else place(end) + block_size
    if 0 <= last < len(places) and places[last] not in unused:
        found = max(found, place(places[last]) + needed(first + last, block_size, size))
    return found
