"""An archive read from its beginning to its end: the header, then every extent, checked.

Digests are computed in threads, some extents ahead; what was found, and what the archive says of itself, is told to
OwnWord in the order of the archive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from typing import Any, TypeAlias

from pybackup.core.errors import Advice, ArchiveError
from pybackup.formats import vma, vma_layout
from pybackup.formats.cluster_index import DriveCounts, IndexBuilder
from pybackup.formats.errors import FormatError, NotAnArchiveError, UnsupportedError
from pybackup.formats.vma import Header
from pybackup.formats.vma_stream import DecodedExtent, VmaStream
from pybackup.formats.zstd_seekable import SeekTableDigest, SeekTableSeen

from .checked_extent import CheckedExtent, check
from .damage import Damage, DamageFound, place_told
from .input import Bytes, FrameSeen, Lost, Piece, SkippableSeen, pieces_of
from .own_word import OwnWord
from .seen_clusters import TooScatteredError

EXTENTS_AHEAD = 4
MOST_IN_ORDER = 256
"""Frames and extents that wait for an extent whose digests are computed."""


class Digests(Enum):
    """Which extents' digests are computed and compared."""

    ALL = "all"
    UNPROVEN = "unproven"
    """Those whose bytes no zstd checksum has proved: enough to trust the data, but not to check the index."""
    NONE = "none"


_Ordered: TypeAlias = Future[CheckedExtent] | CheckedExtent | SkippableSeen | FrameSeen | SeekTableSeen


class _CountedReader:
    """Reads on, and knows how many bytes have come. Changing, by the thread that reads: the number."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.count = 0
        self._read = read

    def read(self, at_most: int) -> bytes:
        content = self._read(at_most)
        self.count += len(content)
        return content


class _Proof:
    """How far checksums prove what was read. Changing, by the thread that reads."""

    def __init__(self) -> None:
        self.is_whole = True
        """Each piece so far was a frame with a checksum; after one without, extents may have unproven parts."""
        self.all_checked = True
        """Something has proved each piece."""

    def note(self, piece: Bytes) -> None:
        self.is_whole = self.is_whole and piece.frame is not None and piece.frame.checksum != 0
        self.all_checked = self.all_checked and piece.checked


class _Beginning:
    """The pieces of an archive until its header is complete (FormatError). Fixed, once made."""

    def __init__(self, pieces: Iterator[Piece], proof: _Proof, *, compressed: bool) -> None:
        self.rows = SeekTableDigest()
        self.is_indexable = True
        self.end = 0
        """Where in the file the header's frame ends."""
        self.header_size = vma_layout.HEADER_START.size
        self.content = bytearray()
        while len(self.content) < self.header_size:
            self._take(next(pieces, None), proof, compressed)
        if len(self.content) != self.header_size:
            self.is_indexable = False

    def _take(self, piece: Piece | None, proof: _Proof, compressed: bool) -> None:
        if isinstance(piece, SkippableSeen | SeekTableSeen):
            self.is_indexable = False
            return
        if piece is None:
            raise FormatError("the archive ends within its header", len(self.content))
        if isinstance(piece, Lost):
            raise FormatError(f"the header is lost: {piece.error.what}", piece.error.offset)
        proof.note(piece)
        if piece.frame is not None:
            self.rows.add(piece.frame.compressed, piece.frame.decompressed, piece.frame.checksum)
            self.end = piece.frame.offset + piece.frame.compressed
        elif compressed:
            self.is_indexable = False
        self.content += piece.content
        if self.header_size == vma_layout.HEADER_START.size <= len(self.content):
            self.header_size = vma.header_length(self.content)


class ArchiveStream:
    """Reads one archive once, front to back.

    Fixed: how to read, and whether damage ends it (ArchiveError) or is gathered in ``damage``. Changing, by the one
    thread that iterates: everything else.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        name: str,
        pool: ThreadPoolExecutor,
        *,
        stop: Callable[[], None] = lambda: None,
        size: int | None = None,
        tolerant: bool = False,
        digests: Digests = Digests.ALL,
        allow_delta: bool = False,
        lost: list[FormatError] | None = None,
    ) -> None:
        """``stop``: makes a ``read`` that waits fail, from any thread. ``size``: bytes of the archive, if known.

        ``lost``: what ``read`` could not give but as zeros, which grows as it is called, and is emptied here.

        ``allow_delta``: what the parent has may lack.
        """
        self.name, self.stop = name, stop
        self.is_encrypted = False
        """Whoever has opened it tells whether it is."""
        self.stored: dict[str, int] = {}
        self._size, self._reader = size, _CountedReader(read)
        self._pool, self._digests = pool, digests
        self._lost = [] if lost is None else lost
        self._found, self._proof = DamageFound(tolerant=tolerant), _Proof()
        self.damage: list[Damage] = self._found.listed
        self._ordered: deque[_Ordered] = deque()
        self._extents_ahead = 0
        try:
            self.compression, self._pieces = pieces_of(self._reader.read, pool, tolerant=tolerant)
            beginning = _Beginning(self._pieces, self._proof, compressed=self.compression != "vma")
            start = memoryview(beginning.content)
            self.header: Header = vma.decode_header(start[: beginning.header_size], allow_delta=allow_delta)
        except (NotAnArchiveError, UnsupportedError) as error:
            raise ArchiveError(f"{name}: {error.what}") from error
        except FormatError as error:
            raise ArchiveError(f"{name}: {error}") from None
        except OSError as error:
            raise ArchiveError(f"cannot read {name}: {error.strerror or error}") from error
        self._leftover = bytes(start[beginning.header_size :])
        called = "" if self.compression == "vma" else "the VMA stream"
        self._stream = VmaStream(self.header, beginning.header_size, tolerant=tolerant, called=called)
        self._own_word = self._begin_own_word(beginning)

    def _begin_own_word(self, beginning: _Beginning) -> OwnWord:
        own_word = OwnWord(
            self.header,
            beginning.rows,
            IndexBuilder(beginning.end, beginning.header_size),
            self._found,
            compressed=self.compression == "zstd",
            has_digests=self._digests is Digests.ALL,
        )
        if not beginning.is_indexable:
            own_word.no_index()
        return own_word

    # -- what is known so far --

    @property
    def consumed(self) -> tuple[int, int] | None:
        """(done, whole) bytes of the archive, where its size is known."""
        return None if self._size is None else (self._reader.count, self._size)

    @property
    def not_listed(self) -> int:
        """How much more is wrong."""
        return self._found.not_listed

    @property
    def about(self) -> dict[str, Any] | None:
        """What the index's directory tells of the archive, once that was read."""
        return self._own_word.about

    @property
    def directory_digest(self) -> bytes | None:
        """By which deltas know this archive, once the index's directory was read."""
        return self._own_word.directory_digest

    @property
    def has_seek_table(self) -> bool:
        """Whether it was read."""
        return self._own_word.has_seek_table

    @property
    def counts(self) -> dict[int, DriveCounts]:
        """What was found of each drive, by its id."""
        return self._own_word.counts

    @property
    def protects_data(self) -> bool:
        """Whether a digest or a checksum has proved all data that was read; false of what no bit flipped would show."""
        return self.header.extent_digests or self._proof.all_checked

    def ends_early(self) -> Iterator[tuple[str, int]]:
        """(name, bytes that are there) of drives that end before their size, as other writers' memory images may."""
        return self._own_word.ends_early()

    # -- the extents --

    def __iter__(self) -> Iterator[CheckedExtent]:
        """Every extent in the order of the archive. ArchiveError at the first damage, unless tolerant."""
        try:
            yield from self._extents()
        except (UnsupportedError, TooScatteredError) as error:
            raise ArchiveError(f"{self.name}: {error}") from None
        except FormatError as error:
            sentence = f"{self.name} is damaged: {place_told(error)}"
            raise ArchiveError(sentence, advice=Advice.SKIP_DAMAGED) from None
        except OSError as error:
            raise ArchiveError(f"cannot read {self.name}: {error.strerror or error}") from error

    def extents(self, drive_ids: Collection[int]) -> Iterator[CheckedExtent]:
        """Every extent, also those of other drives: what comes in order has to be read through."""
        return iter(self)

    def _extents(self) -> Iterator[CheckedExtent]:
        yield from self._submit(self._stream.feed(self._leftover))
        for piece in self._pieces:
            yield from self._take(piece)
        yield from self._submit(self._stream.finish())
        yield from self._in_order(0)
        self._own_word.end()
        self._gather_damage()

    def _take(self, piece: Piece) -> Iterator[CheckedExtent]:
        if isinstance(piece, SkippableSeen | SeekTableSeen):
            # It may be large, and what it tells has to agree with all that came before it.
            self._ordered.append(piece)
            yield from self._in_order(0)
            return
        if isinstance(piece, Lost):
            self._found.spoil(piece.error)
            if piece.size is None:
                # Before it may lie what is damaged already, unless each frame has proved itself.
                yield from self._submit(self._stream.feed_break(keep_begun=self._proof.is_whole))
            else:
                yield from self._submit(self._stream.feed_lost(piece.size))
            return
        self._proof.note(piece)
        yield from self._submit(self._stream.feed(piece.content))
        if piece.frame is not None:
            self._ordered.append(piece.frame)
            yield from self._in_order(EXTENTS_AHEAD)
        elif self.compression != "vma":
            self._own_word.no_index()

    def _submit(self, extents: Iterator[DecodedExtent]) -> Iterator[CheckedExtent]:
        """Have the digests of extents computed; gives those that were before them, one by one as there are too many."""
        for extent in extents:
            self._extents_ahead += 1
            if not extent.header.data_size:
                self._ordered.append(CheckedExtent(extent, [], extent.matches([])))
            elif self._are_digests_of_no_use:
                self._ordered.append(CheckedExtent(extent, [], sound=True))
            else:
                self._ordered.append(self._pool.submit(check, extent))
            yield from self._in_order(EXTENTS_AHEAD)
        self._gather_damage()

    @property
    def _are_digests_of_no_use(self) -> bool:
        """Whether the digests of what comes now are not wanted, or have nothing to be compared with."""
        is_proven = self._proof.is_whole or not self.header.extent_digests
        return self._digests is Digests.NONE or (self._digests is Digests.UNPROVEN and is_proven)

    def _gather_damage(self) -> None:
        """Make our damage of what the stream complains about."""
        for damage in (self._lost, self._stream.damage):
            for error in damage:
                self._found.spoil(error)
            damage.clear()

    def _in_order(self, keep: int) -> Iterator[CheckedExtent]:
        while self._ordered and (
            self._extents_ahead > keep
            or len(self._ordered) > MOST_IN_ORDER
            or isinstance(self._ordered[0], SkippableSeen | SeekTableSeen | FrameSeen)
        ):
            one = self._ordered.popleft()
            if isinstance(one, SkippableSeen):
                self._own_word.skippable(one)
            elif isinstance(one, SeekTableSeen):
                self._own_word.seek_table(one)
            elif isinstance(one, FrameSeen):
                self._own_word.frame(one)
            else:
                self._extents_ahead -= 1
                checked = one.result() if isinstance(one, Future) else one
                self._own_word.extent(checked)
                yield checked
