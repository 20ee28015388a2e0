"""A VMA stream, read piece by piece: chunks of bytes in, extents out. Damage costs as little as can be.

A chunk may be *lost* (its bytes are not known, its length is) or a *break* (not even that). What lies in lost chunks
is given out as None; after a break, or where no extent header is found, the reader looks for the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from . import vma, vma_layout
from .buffer import Buffer
from .clusters import cluster_digest, expand, extent_digest
from .errors import FormatError
from .vma import ExtentHeader, Header


class DecodedExtent(NamedTuple):
    """An extent: ``at``, its offset in the VMA stream; its header; for each slot with stored blocks their bytes.

    ``stored`` has one entry a slot: None where the slot's bytes are lost, empty for a zero cluster.
    """

    at: int
    header: ExtentHeader
    stored: tuple[memoryview | None, ...]

    def digests(self) -> list[bytes]:
        """The digests of the non-zero clusters, computed from the bytes; a lost cluster has an empty one."""
        return [
            b""
            if stored is None
            else cluster_digest(stored if slot.mask == vma_layout.FULL_MASK else expand(slot.mask, stored))
            for slot, stored in zip(self.header.slots, self.stored, strict=True)
            if slot.mask
        ]

    def matches(self, digests: list[bytes]) -> bool:
        """Whether the digests agree with the extent's own; True where it has none, or something is lost."""
        own = self.header.digest
        return own is None or b"" in digests or extent_digest(digests) == own


SMALL = 32 << 10
"""Bytes: chunks that are smaller are joined while they wait."""


class _Chunk(NamedTuple):
    size: int
    content: memoryview | None


class _Window:
    """The chunks that are not used up yet. ``at`` is the offset in the VMA stream of the first byte in them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.size = 0
        self._chunks: deque[_Chunk] = deque()
        self._used = 0

    def append(self, size: int, content: memoryview | None) -> None:
        self.size += size
        if size < SMALL and content is not None:
            content = self._with_small_ones_before(content)
        if size:
            self._chunks.append(_Chunk(size if content is None else len(content), content))

    def _with_small_ones_before(self, content: memoryview) -> memoryview:
        """Join a small chunk with those before that are no larger: an extent may come in millions of pieces."""
        while len(self._chunks) > 1 and self._chunks[-1].content is not None and self._chunks[-1].size <= len(content):
            content = memoryview(b"".join((self._chunks.pop().content or b"", content)))
            if len(content) >= SMALL:
                break
        return content

    def clear(self) -> int:
        """Drop everything; the number of bytes dropped."""
        dropped, self.size, self._used = self.size, 0, 0
        self._chunks.clear()
        self.at += dropped
        return dropped

    def take(self, size: int) -> memoryview | None:
        """The next bytes, which must be there; None if any of them is lost."""
        if not size:
            return memoryview(b"")
        first = self._chunks[0]
        if first.size - self._used >= size:
            taken = None if first.content is None else first.content[self._used : self._used + size]
            self._advance(size)
            return taken
        parts: list[memoryview | None] = []
        while size:
            first = self._chunks[0]
            part = min(size, first.size - self._used)
            parts.append(None if first.content is None else first.content[self._used : self._used + part])
            self._advance(part)
            size -= part
        known = [part for part in parts if part is not None]
        return memoryview(b"".join(known)) if len(known) == len(parts) else None

    def _advance(self, size: int) -> None:
        self._used += size
        self.at += size
        self.size -= size
        if self._used == self._chunks[0].size:
            self._chunks.popleft()
            self._used = 0

    def peek(self, size: int) -> memoryview | None:
        """Like take(), but the bytes stay."""
        first = self._chunks[0]
        if first.size - self._used >= size:
            return None if first.content is None else first.content[self._used : self._used + size]
        saved = deque(self._chunks), self._used, self.at, self.size
        taken = self.take(size)
        self._chunks, self._used, self.at, self.size = saved
        return taken

    def skip_to_magic(self, alignment_from: int) -> bool:
        """Go on, at steps of 512 bytes, to where an extent may begin; False when the chunks are used up."""
        while self.size:
            first = self._chunks[0]
            step = first.size - self._used
            if first.content is not None:
                found = self._find_magic(first.content, -(self.at - alignment_from) % vma_layout.SECTOR_SIZE)
                if found is not None:
                    self._advance(found)
                    return True
            self._advance(step)
        return False

    def _find_magic(self, content: memoryview, first: int) -> int | None:
        """How far on from what is used up the magic stands, trying ``first`` and each 512 bytes behind it."""
        for step in range(first, len(content) - self._used, vma_layout.SECTOR_SIZE):
            start = self._used + step
            # A chunk that ends within the magic may hold it: the rest is looked at when it is there.
            if vma_layout.EXTENT_MAGIC.startswith(content[start : start + len(vma_layout.EXTENT_MAGIC)].tobytes()):
                return step
        return None


class VmaStream:
    """Decodes the extents of one archive. Fixed: the header. Changing: the window, and ``damage``.

    With ``tolerant`` False the first thing wrong raises FormatError; else it is put into ``damage``, and the reader
    goes on with what can be saved.
    """

    def __init__(self, header: Header, at: int, *, tolerant: bool = False, called: str = "") -> None:
        """``called``: what places are told of, where the stream is not the file itself."""
        self.header = header
        self.damage: list[FormatError] = []
        self._called = called
        self._window = _Window(at)
        self._aligned_to = at
        self._tolerant = tolerant
        self._next: ExtentHeader | None = None
        self._lost_at: int | None = None

    @property
    def at(self) -> int:
        """The offset in the VMA stream of the next byte to be decoded."""
        return self._window.at

    def feed(self, content: Buffer) -> Iterator[DecodedExtent]:
        """The extents that are complete with these bytes."""
        self._window.append(len(content), memoryview(content))
        return self._decode()

    def feed_lost(self, size: int) -> Iterator[DecodedExtent]:
        """So many bytes are lost: the extents that are complete in spite of it."""
        self._window.append(size, None)
        return self._decode()

    def feed_break(self, *, keep_begun: bool) -> Iterator[DecodedExtent]:
        """An unknown number of bytes is lost: what there is of the extent that was begun, if it is to be kept."""
        begun = self._end_begun(keep_begun)
        self._lost_at = self._aligned_to = self._window.at
        return begun

    def finish(self) -> Iterator[DecodedExtent]:
        """The stream has ended, and nothing may be left over: the extent that was begun, without the rest of it."""
        if self._next is not None or (self._window.size and self._lost_at is None):
            self._complain(FormatError("the archive ends in the middle of an extent", self._window.at))
        return self._end_begun(keep=True)

    def _end_begun(self, keep: bool) -> Iterator[DecodedExtent]:
        """What there is of the extent that was begun; the window is empty then."""
        begun: list[DecodedExtent] = []
        if keep and self._next is not None:
            begun += self.feed_lost(self._next.data_size - self._window.size)
        self._next = None
        self._window.clear()
        return iter(begun)

    def _complain(self, error: FormatError) -> None:
        error = FormatError(error.what, error.offset, self._called)
        if not self._tolerant:
            raise error
        self.damage.append(error)

    def _decode(self) -> Iterator[DecodedExtent]:
        window = self._window
        while True:
            if self._next is None and not self._read_header():
                return
            assert self._next is not None
            if window.size < self._next.data_size:
                return
            header, self._next = self._next, None
            at = window.at - vma_layout.EXTENT_HEADER_SIZE
            stored = tuple(window.take(slot.mask.bit_count() * vma_layout.BLOCK_SIZE) for slot in header.slots)
            yield DecodedExtent(at, header, stored)

    def _read_header(self) -> bool:
        """Find the next extent header; False when more bytes are needed."""
        window = self._window
        while window.size >= vma_layout.EXTENT_HEADER_SIZE:
            if self._lost_at is not None and not window.skip_to_magic(self._aligned_to):
                return False
            if window.size < vma_layout.EXTENT_HEADER_SIZE:
                return False
            content = window.peek(vma_layout.EXTENT_HEADER_SIZE)
            try:
                if content is None:
                    raise FormatError("an extent header is lost", window.at)
                self._next = vma.decode_extent_header(content, self.header, window.at)
            except FormatError as error:
                if self._lost_at is None:
                    self._complain(error)
                    self._lost_at = window.at
                window.take(vma_layout.SECTOR_SIZE)
                continue
            self._lost_at = None
            window.take(vma_layout.EXTENT_HEADER_SIZE)
            return True
        return False
