"""Zstandard frames one by one, and the seekable format 0.1.0.

The frame format is RFC 8878; the seek table is ``contrib/seekable_format/zstd_seekable_compression_format.md`` of
the zstd repository. Nothing here compresses or decompresses: this module finds where frames begin and end.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from .buffer import Buffer
from .errors import FormatError

FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_HEADER = struct.Struct("<II")
INDEX_MAGIC = 0x184D2A5B
"""The skippable frames that hold our cluster index."""
SEEK_TABLE_MAGIC = 0x184D2A5E
SKIPPABLE_MASK, SKIPPABLE_BASE = 0xFFFFFFF0, 0x184D2A50
_OUR_MAGICS = FRAME_MAGIC, struct.pack("<I", INDEX_MAGIC), struct.pack("<I", SEEK_TABLE_MAGIC)
_ANY_MAGIC = re.compile(b"|".join(map(re.escape, _OUR_MAGICS)))

SEEK_ROW = struct.Struct("<III")
"""compressed size, decompressed size, checksum"""
SEEK_FOOTER = struct.Struct("<IBI")
SEEK_DESCRIPTOR = 0x80
SEEKABLE_NUMBER = 0x8F92EAB1
MAX_SEEK_ROWS = 0x8000000
"""The limit of zstd's own reader."""
MAX_SKIPPABLE = {INDEX_MAGIC: 17 << 20, SEEK_TABLE_MAGIC: MAX_SEEK_ROWS * SEEK_ROW.size + SEEK_FOOTER.size}
"""Payloads larger than this are refused; those of other kinds have the limit of a frame."""

BLOCK_MAX = 128 * 1024
BLOCK_MIN = 4
"""No block that has content takes fewer bytes in the file."""
CHECKSUM_SIZE = 4
LONGEST_FRAME_HEADER = 18
_FCS_SIZES = (0, 2, 4, 8)
_DICTIONARY_SIZES = (0, 1, 2, 4)


def skippable(magic: int, payload: Buffer) -> bytes:
    """A frame that decompressors pass over."""
    return SKIPPABLE_HEADER.pack(magic, len(payload)) + payload


def is_skippable(start: Buffer) -> bool:
    """Whether four bytes or more begin a skippable frame."""
    return len(start) >= 4 and int.from_bytes(start[:4], "little") & SKIPPABLE_MASK == SKIPPABLE_BASE


class FrameHeader(NamedTuple):
    """The header of a zstd frame: its own length in bytes, the size of the content or None, and the flags.

    ``window``: bytes that a decompressor keeps of what it gave out.
    """

    length: int
    content_size: int | None
    has_checksum: bool
    unused_bits: int
    window: int


def parse_frame_header(start: Buffer) -> FrameHeader:
    """Read a frame's header from its first bytes, at least 18 or all that there are (FormatError)."""
    if bytes(start[:4]) != FRAME_MAGIC:
        raise FormatError("this is not the beginning of a zstd frame")
    if len(start) < 6:
        raise FormatError("a zstd frame header is cut short")
    descriptor = start[4]
    single_segment = bool(descriptor & 0x20)
    fcs_size = _FCS_SIZES[descriptor >> 6] or (1 if single_segment else 0)
    at = 5 + (not single_segment) + _DICTIONARY_SIZES[descriptor & 3]
    length = at + fcs_size
    if len(start) < length:
        raise FormatError("a zstd frame header is cut short")
    size = int.from_bytes(start[at:length], "little") + (256 if fcs_size == 2 else 0) if fcs_size else None
    window = size or 0 if single_segment else _window_size(start[5])
    return FrameHeader(length, size, bool(descriptor & 4), descriptor & 0x18, window)


def _window_size(descriptor: int) -> int:
    """Bytes, from the byte that tells: a power of two, and eighths of it (RFC 8878, 3.1.1.1.2)."""
    base: int = 1 << (10 + (descriptor >> 3))
    return base + (base >> 3) * (descriptor & 7)


def parse_block_header(start: Buffer) -> tuple[int, bool]:
    """How many bytes follow a block's three header bytes, and whether it is the frame's last block."""
    word = int.from_bytes(start[:3], "little")
    kind, size = word >> 1 & 3, word >> 3
    if kind == 3 or size > BLOCK_MAX:
        raise FormatError("a zstd block header is damaged")
    return (1 if kind == 1 else size), bool(word & 1)


class ByteFeed:
    """Exact reads from a source of chunks, with a look ahead.

    Changing: the buffer and ``offset``, the number of bytes taken so far; only the one reader touches them.
    """

    def __init__(self, read: Callable[[int], bytes], offset: int = 0, chunk: int = 1 << 20) -> None:
        self._read, self._chunk = read, chunk
        self._buffer, self._at = b"", 0
        self.offset = offset

    def peek(self, size: int) -> memoryview:
        """The next ``size`` bytes, or fewer where the source ends; they stay in the feed."""
        while len(self._buffer) - self._at < size:
            more = self._read(max(self._chunk, size - len(self._buffer) + self._at))
            if not more:
                break
            self._buffer, self._at = (self._buffer[self._at :] + more if self._at < len(self._buffer) else more), 0
        return memoryview(self._buffer)[self._at : self._at + size]

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes; FormatError where the source ends before."""
        taken = self.peek(size)
        if len(taken) < size:
            raise FormatError("the archive ends here, in the middle of something", self.offset + len(taken))
        self._at += size
        self.offset += size
        return taken

    def skip_to_magic(self) -> bool:
        """Go on to the nearest place that looks like the beginning of a frame; False at the end of the source."""
        while True:
            window = self.peek(self._chunk)
            found = _ANY_MAGIC.search(window)
            if found is not None:
                self.take(found.start())
                return True
            if len(window) < self._chunk:
                self.take(len(window))
                return False
            self.take(len(window) - len(FRAME_MAGIC) + 1)


class Frame(NamedTuple):
    """One frame of a zstd file.

    ``offset`` in bytes from the start of the file. ``content`` is the whole frame as it lies there; for a skippable
    frame (``magic`` not None) the payload begins at byte 8. ``content_size`` is the size after decompression.
    """

    offset: int
    content: memoryview
    magic: int | None
    content_size: int


@dataclass(frozen=True, slots=True)
class LargeFrame:
    """A frame too large, or of unknown size, to be taken at once: only its header has been looked at."""

    offset: int
    header: FrameHeader


def next_frame(feed: ByteFeed, limit: int) -> Frame | LargeFrame | None:
    """Take the next frame, or None at the end.

    A frame whose content is larger than ``limit`` bytes, or of unknown size, is not taken; use blocks_of() for it.
    """
    offset = feed.offset
    start = feed.peek(LONGEST_FRAME_HEADER)
    if not len(start):
        return None
    if is_skippable(start):
        return _take_skippable(feed, offset, limit)
    try:
        header = parse_frame_header(start)
    except FormatError as error:
        raise FormatError(error.what, offset) from None
    if header.content_size is None or header.content_size > limit:
        return LargeFrame(offset, header)
    return Frame(offset, feed.take(_frame_length(feed, header, limit)), None, header.content_size)


def _take_skippable(feed: ByteFeed, offset: int, limit: int) -> Frame:
    start = feed.peek(SKIPPABLE_HEADER.size)
    if len(start) < SKIPPABLE_HEADER.size:
        raise FormatError("the archive ends here, in the middle of something", offset + len(start))
    magic, size = SKIPPABLE_HEADER.unpack(start)
    if size > MAX_SKIPPABLE.get(magic, limit):
        raise FormatError(f"a skippable frame claims {size} bytes", offset)
    return Frame(offset, feed.take(SKIPPABLE_HEADER.size + size), magic, 0)


def _frame_length(feed: ByteFeed, header: FrameHeader, limit: int) -> int:
    """The length of the frame that lies next in the feed, by walking over its blocks."""
    size_told = limit if header.content_size is None else header.content_size
    length, blocks, last = header.length, 0, False
    while not last:
        window = feed.peek(length + 3)
        start = window[length:]
        if len(start) < 3:
            raise FormatError("the archive ends here, in the middle of something", feed.offset + len(window))
        try:
            size, last = parse_block_header(start)
        except FormatError as error:
            raise FormatError(error.what, feed.offset + length) from None
        length += 3 + size
        blocks += 1
        if length > most_compressed(size_told):
            raise FormatError("a zstd frame is larger than what it holds", feed.offset)
    if header.content_size is not None and header.content_size > blocks * BLOCK_MAX:
        raise FormatError("a zstd frame claims more than its blocks can hold", feed.offset)
    return length + CHECKSUM_SIZE * header.has_checksum


def most_content(compressed: int) -> int:
    """How many bytes a frame of ``compressed`` bytes can hold at most: what claims more need not be believed."""
    return compressed // BLOCK_MIN * BLOCK_MAX


def most_compressed(content: int) -> int:
    """How many bytes a frame of ``content`` bytes may take: blocks without content could go on without end.

    What cannot be compressed takes three bytes for 128 KiB more; who flushes after every few bytes needs some more.
    """
    return content + content // 2 + (64 << 10)


def blocks_of(feed: ByteFeed, header: FrameHeader) -> Iterator[memoryview]:
    """Take a large frame piece by piece: its header, each block (at most 128 KiB of content), its checksum."""
    if header.unused_bits:
        raise FormatError("reserved bits of a zstd frame header are set", feed.offset)
    yield feed.take(header.length)
    last = False
    while not last:
        size, last = parse_block_header(feed.peek(3).tobytes() + b"\0\0\0")
        yield feed.take(3 + size)
    if header.has_checksum:
        yield feed.take(CHECKSUM_SIZE)


class SeekTableDigest:
    """The rows of a seek table that is never put together, counted and hashed: nobody knows how many there will be."""

    def __init__(self) -> None:
        self.rows = 0
        self._hash = blake3()
        self._waiting = array("I")

    def add(self, compressed: int, decompressed: int, checksum: int) -> None:
        """Append the row of one frame; sizes in bytes."""
        self._waiting.extend((compressed, decompressed, checksum))
        self.rows += 1
        if len(self._waiting) >= 3 * 4096:
            self._flush()

    def _flush(self) -> None:
        self._hash.update(_little_endian(self._waiting).tobytes())
        self._waiting = array("I")

    def digest(self) -> bytes:
        """BLAKE3 of the rows as they lie in a file."""
        self._flush()
        return self._hash.digest()


class SeekTableSeen(NamedTuple):
    """A seek table that lies in a file: where, the length of its frame, its number of rows and their BLAKE3.

    ``names_index``: its last frame has no content, as that of an index.
    """

    offset: int
    length: int
    rows: int
    digest: bytes
    names_index: bool


def take_seek_table(feed: ByteFeed, chunk: int = 1 << 20) -> SeekTableSeen:
    """Take the seek table that lies next in the feed, a piece at a time (FormatError where it is none)."""
    offset = feed.offset
    _, size = SKIPPABLE_HEADER.unpack(feed.take(SKIPPABLE_HEADER.size))
    rows_size = size - SEEK_FOOTER.size
    if rows_size < 0 or rows_size > MAX_SEEK_ROWS * SEEK_ROW.size:
        raise FormatError(f"the seek table claims {size} bytes", offset)
    hashed, left, last = blake3(), rows_size, b""
    while left:
        rows = feed.take(min(chunk, left))
        hashed.update(rows)
        left -= len(rows)
        last = (last + rows[-SEEK_ROW.size :])[-SEEK_ROW.size :]
    count, descriptor, number = SEEK_FOOTER.unpack(feed.take(SEEK_FOOTER.size))
    # Other writers may leave out the checksums.
    row = SEEK_ROW.size if descriptor & SEEK_DESCRIPTOR else SEEK_ROW.size - CHECKSUM_SIZE
    if number != SEEKABLE_NUMBER or descriptor & 0x7F or count * row != rows_size:
        raise FormatError("the seek table is damaged", offset)
    names_index = row == len(last) == SEEK_ROW.size and not SEEK_ROW.unpack(last)[1]
    return SeekTableSeen(offset, SKIPPABLE_HEADER.size + size, count, hashed.digest(), names_index)


class SeekTable:
    """The rows of a seek table: for each frame its compressed size, decompressed size and checksum.

    Twelve bytes a frame: 48 MiB for a tebibyte of stored data in frames of 256 KiB.
    """

    def __init__(self) -> None:
        self._rows = array("I")

    def __len__(self) -> int:
        return len(self._rows) // 3

    def add(self, compressed: int, decompressed: int, checksum: int) -> None:
        """Append the row of one frame; sizes in bytes."""
        self._rows.extend((compressed, decompressed, checksum))

    def row(self, number: int) -> tuple[int, int, int]:
        """The row of frame ``number``, counted from 0 (or, negative, from the end)."""
        at = number * 3 if number >= 0 else len(self._rows) + number * 3
        return self._rows[at], self._rows[at + 1], self._rows[at + 2]

    def encode(self) -> bytes:
        """The skippable frame that ends a seekable file."""
        return b"".join(self.pieces())

    def pieces(self) -> list[Buffer]:
        """The same in pieces, of which the rows are no copy: no row can be added while one is held."""
        rows = memoryview(_little_endian(self._rows)).cast("B")
        head = SKIPPABLE_HEADER.pack(SEEK_TABLE_MAGIC, len(rows) + SEEK_FOOTER.size)
        return [head, rows, SEEK_FOOTER.pack(len(self), SEEK_DESCRIPTOR, SEEKABLE_NUMBER)]

    @staticmethod
    def size_from_footer(footer: Buffer, file_size: int) -> int | None:
        """The length of the whole seek table frame, from the last nine bytes of a file; None where there is none."""
        count, descriptor, number = SEEK_FOOTER.unpack(footer)
        if number != SEEKABLE_NUMBER or descriptor & 0x7F or count > MAX_SEEK_ROWS:
            return None
        row = SEEK_ROW.size if descriptor & 0x80 else 8
        size = SKIPPABLE_HEADER.size + int(count) * row + SEEK_FOOTER.size
        return size if size <= file_size else None

    @classmethod
    def decode(cls, frame: Buffer) -> SeekTable:
        """Read a seek table with checksums from its whole frame (FormatError)."""
        table = cls()
        footer = frame[-SEEK_FOOTER.size :]
        if len(frame) < SKIPPABLE_HEADER.size + SEEK_FOOTER.size or footer[4] != SEEK_DESCRIPTOR:
            raise FormatError("the seek table is damaged")
        magic, size = SKIPPABLE_HEADER.unpack_from(frame)
        expected = cls.size_from_footer(footer, len(frame))
        if magic != SEEK_TABLE_MAGIC or size + SKIPPABLE_HEADER.size != len(frame) or expected != len(frame):
            raise FormatError("the seek table is damaged")
        table._rows.frombytes(bytes(frame[SKIPPABLE_HEADER.size : -SEEK_FOOTER.size]))
        table._rows = _little_endian(table._rows)
        return table


def _little_endian(numbers: array[int]) -> array[int]:
    """The same numbers with their bytes in little-endian order, or back."""
    if struct.pack("=H", 1) == b"\x01\x00":
        return numbers
    swapped = numbers[:]
    swapped.byteswap()
    return swapped
