"""The bytes of an archive, whatever wraps them: plain, zstd frame by frame, or gzip; from a file or a pipe.

Cut into pieces that carry their VMA bytes, in order. Decompression of independent frames runs ahead in a thread pool;
a frame too large for that is decompressed block by block, so that memory stays bounded whatever a file claims.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import zstandard

from pybackup.core.system.unfilled import ALIGNMENT, unfilled_aligned
from pybackup.formats import vma_layout
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.archive import MAX_FRAME_SIZE
from pybackup.formats.buffer import Buffer
from pybackup.formats.errors import FormatError, NotAnArchiveError, UnsupportedError
from pybackup.formats.zstd_seekable import SeekTableSeen

CHUNK = 1 << 20
MAX_WINDOW = 1 << 27
"""128 MiB, the limit of `zstd -d` without further options."""
GZIP_MAGIC = b"\x1f\x8b"
_FOREIGN = {
    b"\x89LZO": ("lzop", "lzop"),
    b"\xfd7zXZ\0": ("xz", "xz"),
    b"BZh": ("bzip2", "bzip2"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4"),
}
"""Magics of what we do not decompress: what it is called, and the program that does."""
FRAMES_AHEAD = 12
BYTES_AHEAD = 32 << 20
"""Bytes of frames in the file, and of what they hold, that wait or are decompressed ahead: of large frames fewer do."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """VMA bytes. ``frame`` is set where they are the content of one whole frame.

    ``checked``: a checksum of what wraps them proves them, here or when the last of them is there.
    """

    content: Buffer
    frame: FrameSeen | None = None
    checked: bool = True


@dataclass(frozen=True, slots=True)
class Lost:
    """VMA bytes that cannot be had: how many, or None if even that is not known; and why."""

    size: int | None
    error: FormatError
    frame: FrameSeen | None = None


@dataclass(frozen=True, slots=True)
class FrameSeen:
    """A frame of the file: offset, size in the file, size of its content, seek table checksum."""

    offset: int
    compressed: int
    decompressed: int
    checksum: int


@dataclass(frozen=True, slots=True)
class SkippableSeen:
    """A skippable frame: offset, and the whole of it."""

    offset: int
    content: memoryview


Piece: TypeAlias = Bytes | Lost | SkippableSeen | SeekTableSeen


class _Ahead:
    """Frames that were taken, and are decompressed meanwhile (None for skippable ones). Changing: the queue."""

    def __init__(self) -> None:
        self._frames: deque[tuple[zs.Frame, Future[bytes | bytearray] | None]] = deque()
        self._size = 0

    def append(self, frame: zs.Frame, content: Future[bytes | bytearray] | None) -> None:
        self._frames.append((frame, content))
        self._size += len(frame.content) + frame.content_size

    def popleft(self) -> tuple[zs.Frame, Future[bytes | bytearray] | None]:
        frame, content = self._frames.popleft()
        self._size -= len(frame.content) + frame.content_size
        return frame, content

    def exceeds(self, frames: int, size: int) -> bool:
        """Whether there are more frames than that, or several that take more bytes."""
        return len(self._frames) > frames or (len(self._frames) > 1 and self._size > size)


def pieces_of(
    read: Callable[[int], bytes], pool: ThreadPoolExecutor, *, tolerant: bool = False
) -> tuple[str, Iterator[Piece]]:
    """("vma", "zstd" or "gzip", the pieces) of what ``read(at_most)`` gives.

    FormatError at the first damage; with ``tolerant`` damage becomes Lost pieces. NotAnArchiveError for other files.
    """
    feed = zs.ByteFeed(read, chunk=CHUNK)
    start = bytes(feed.peek(vma_layout.HEADER_START.size))
    if start[:4] == vma_layout.MAGIC:
        return "vma", _plain(feed)
    if start[:4] == zs.FRAME_MAGIC or zs.is_skippable(start):
        return "zstd", _zstd(feed, pool, tolerant)
    if start[:2] == GZIP_MAGIC:
        return "gzip", _gzip(feed, tolerant)
    raise NotAnArchiveError(describe_foreign(start))


def decompressor_of(start: bytes) -> str | None:
    """The program that decompresses what begins so, "pybackup" itself among them; None for what is no archive."""
    if start[:4] == zs.FRAME_MAGIC or zs.is_skippable(start) or start[:2] == GZIP_MAGIC:
        return "pybackup"
    return next((program for magic, (_, program) in _FOREIGN.items() if start.startswith(magic)), None)


def describe_foreign(start: bytes) -> str:
    """What a file is that begins so, and is no archive that we read."""
    if not start:
        return "the file is empty"
    for magic, (name, program) in _FOREIGN.items():
        if start.startswith(magic):
            return f"it is compressed with {name}; decompress it first: {program} -dc ARCHIVE | pybackup verify -"
    return "it is not an archive: neither VMA, nor zstd, nor gzip"


def _plain(feed: zs.ByteFeed) -> Iterator[Piece]:
    while len(content := feed.peek(CHUNK)):
        yield Bytes(feed.take(len(content)), checked=False)


def _gzip(feed: zs.ByteFeed, tolerant: bool) -> Iterator[Piece]:
    try:
        yield from _gunzip(feed)
    except FormatError as error:
        if not tolerant:
            raise
        yield Lost(None, error)


def _gunzip(feed: zs.ByteFeed) -> Iterator[Bytes]:
    decompressor = zlib.decompressobj(wbits=31)
    ended = False
    while len(window := feed.peek(CHUNK)):
        waiting = bytes(feed.take(len(window)))
        while waiting or decompressor.unconsumed_tail:
            if decompressor.eof:
                decompressor = zlib.decompressobj(wbits=31)
            try:
                content = decompressor.decompress(waiting, CHUNK)
            except zlib.error:
                raise FormatError("the gzip data is damaged", feed.offset) from None
            waiting = decompressor.unconsumed_tail or decompressor.unused_data
            if content:
                yield Bytes(content)
            elif not decompressor.eof and not waiting:
                break
        ended = decompressor.eof
    if not ended:
        raise FormatError("the gzip data ends too early", feed.offset)


# -- zstd -----------------------------------------------------------------------------------------------------------


class _Decompressors(threading.local):
    """One decompressor a thread."""

    def __init__(self) -> None:
        self.one = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)


_decompressors = _Decompressors()
_NOT_AS_TOLD = "a zstd frame does not hold what its header says"


def decompress_frame(content: memoryview, size: int, offset: int) -> bytes:
    """The content of one whole frame, which must be ``size`` bytes, with nothing behind it (FormatError)."""
    with _damage_at(offset):
        _check_frame(content, size)
        data: bytes = _decompressors.one.decompress(content, max_output_size=size, allow_extra_data=False)
        if len(data) != size:
            raise FormatError(_NOT_AS_TOLD)
    return data


def decompress_aligned(content: memoryview, size: int, offset: int) -> bytes | bytearray:
    """As decompress_frame(), in memory that can be written past the page cache; ``content`` must be the whole frame.

    zstd decompresses a whole frame with room for all of it in one step, to where it is wanted. Of one that is cut
    short it would give the content without having seen the checksum.
    """
    if size < 2 * ALIGNMENT:
        return decompress_frame(content, size, offset)
    with _damage_at(offset):
        _check_frame(content, size)
        data = unfilled_aligned(size)
        with _decompressors.one.stream_reader(content) as reader:
            if reader.readinto(data) != size:
                raise FormatError(_NOT_AS_TOLD)
    return data


def _check_frame(content: memoryview, size: int) -> None:
    header = zs.parse_frame_header(content[: zs.LONGEST_FRAME_HEADER])
    if header.unused_bits:
        raise FormatError("reserved bits of a zstd frame header are set")
    if header.content_size != size or size > zs.most_content(len(content)):
        # Room is made for what the frame claims, whatever it holds.
        raise FormatError(_NOT_AS_TOLD)


@contextmanager
def _damage_at(offset: int) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise FormatError(error.what, offset) from None
    except zstandard.ZstdError as error:
        raise FormatError(f"a zstd frame is damaged ({_clause(error)})", offset) from None


def _clause(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1] or "unknown error"


def _zstd(feed: zs.ByteFeed, pool: ThreadPoolExecutor, tolerant: bool) -> Iterator[Piece]:
    ahead = _Ahead()
    while True:
        try:
            frame = _seek_table(feed) or zs.next_frame(feed, MAX_FRAME_SIZE)
        except FormatError as error:
            yield from _drain(ahead, 0, tolerant)
            if not tolerant:
                raise
            yield Lost(None, error)
            _find_next_frame(feed)
            continue
        if frame is None:
            break
        if isinstance(frame, zs.LargeFrame | SeekTableSeen):
            yield from _drain(ahead, 0, tolerant)
            yield from (frame,) if isinstance(frame, SeekTableSeen) else _large_frame(feed, frame, tolerant)
            continue
        skip = frame.magic is not None
        ahead.append(
            frame, None if skip else pool.submit(decompress_aligned, frame.content, frame.content_size, frame.offset)
        )
        yield from _drain(ahead, FRAMES_AHEAD, tolerant)
    yield from _drain(ahead, 0, tolerant)


_SEEK_TABLE = zs.SEEK_TABLE_MAGIC.to_bytes(4, "little")


def _seek_table(feed: zs.ByteFeed) -> SeekTableSeen | None:
    """The seek table, if it comes next: it is hashed and not held, for a file claims as many rows as it likes."""
    return zs.take_seek_table(feed) if bytes(feed.peek(4)) == _SEEK_TABLE else None


def _find_next_frame(feed: zs.ByteFeed) -> None:
    """After damage: go on to the next bytes that look like the beginning of a frame."""
    if len(feed.peek(1)):
        feed.take(1)
    feed.skip_to_magic()


def _drain(ahead: _Ahead, keep: int, tolerant: bool) -> Iterator[Piece]:
    while ahead.exceeds(keep, BYTES_AHEAD):
        frame, content = ahead.popleft()
        if content is None:
            yield SkippableSeen(frame.offset, frame.content)
            continue
        has_checksum = bool(frame.content[4] & 4)
        checksum = int.from_bytes(frame.content[-zs.CHECKSUM_SIZE :], "little") if has_checksum else 0
        seen = FrameSeen(frame.offset, len(frame.content), frame.content_size, checksum)
        try:
            yield Bytes(content.result(), seen, has_checksum)
        except FormatError as error:
            if not tolerant:
                raise
            yield Lost(frame.content_size, error, seen)


def _large_frame(feed: zs.ByteFeed, frame: zs.LargeFrame, tolerant: bool) -> Iterator[Piece]:
    if frame.header.window > MAX_WINDOW:
        raise UnsupportedError(
            f"the zstd data needs a window of {frame.header.window >> 20} MiB, more than the {MAX_WINDOW >> 20} MiB"
            " that pybackup keeps; decompress it first: zstd -dc --long=31 ARCHIVE | pybackup verify -"
        )
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
    try:
        for block in zs.blocks_of(feed, frame.header):
            content = decompressor.decompress(block)
            if content:
                yield Bytes(content, checked=frame.header.has_checksum)
    except (zstandard.ZstdError, FormatError) as error:
        damage = (
            error
            if isinstance(error, FormatError)
            else FormatError(f"the zstd data is damaged ({_clause(error)})", feed.offset)
        )
        if not tolerant:
            raise damage from None
        yield Lost(None, damage)
        _find_next_frame(feed)
