"""An encrypted archive read on from its beginning, wherever it comes from; or one that is not, without a word.

The chunks are opened in threads, some ahead of the one that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from pybackup.core.secrets.keys import Keys
from pybackup.formats.age_header import VERSION_LINE, looks_encrypted, parse_header
from pybackup.formats.age_payload import NONCE_SIZE, SEALED, TAG_SIZE, PayloadKey
from pybackup.formats.errors import FormatError

from .encrypted_file import HEAD, chunk_is_wrong, end_is_wrong, header_is_wrong, refuse_armor
from .read_ahead import Sized, in_order

BATCH = 16
"""Chunks that are opened at once."""
THREADS = 2
AHEAD, AHEAD_SIZE = 3, 8 << 20
"""Batches ahead of the one that is used, and bytes that they may take."""
LOOK = len(VERSION_LINE)
"""Bytes by which an encrypted file is known."""


class _Opened(NamedTuple):
    """The content of chunks in a row, what was wrong with them, and whether nothing comes behind them."""

    content: bytes
    wrong: list[FormatError]
    is_end: bool


class Unsealed:
    """Reads on, what the file holds or what is encrypted in it.

    Fixed: how to read the file, its name, the keys. Changing, by the one thread that reads: what was read; ``lost``,
    which is what did not decrypt: with ``tolerant`` zeros stand there, and without it the first ends the reading.
    """

    def __init__(self, read: Callable[[int], bytes], name: str, keys: Keys, *, tolerant: bool = False) -> None:
        """Nothing is read yet."""
        self.lost: list[FormatError] = []
        self._source, self._name, self._keys, self._tolerant = read, name, keys, tolerant
        self._start: bytes | None = None
        self._opened: Iterator[_Opened] | None = None
        self._rest = memoryview(b"")
        self._pool: ThreadPoolExecutor | None = None

    @property
    def is_encrypted(self) -> bool:
        """Whether it is, once anything was read."""
        return self._opened is not None

    def read(self, at_most: int) -> bytes:
        """Bytes of the archive, none at its end (OSError, FormatError, NoKeyError, ArchiveError)."""
        if self._start is None:
            self._begin()
        if self._opened is not None:
            return self._read_opened(self._opened, at_most)
        if self._start:
            part, self._start = self._start[:at_most], self._start[at_most:]
            return part
        return self._source(at_most)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        """Look what the file is: only now, so that whoever reads is told what fails."""
        start = b""
        while len(start) < LOOK and (more := self._source(LOOK - len(start))):
            start += more
        self._start = start
        if looks_encrypted(start):
            refuse_armor(start)
            self._opened = self._chunks(start)

    def _read_opened(self, opened: Iterator[_Opened], at_most: int) -> bytes:
        while not self._rest:
            one = next(opened, None)
            if one is None:
                return b""
            self.lost += one.wrong
            if len(one.content) <= at_most and one.content:
                return one.content
            self._rest = memoryview(one.content)
        part, self._rest = self._rest[:at_most], self._rest[at_most:]
        return bytes(part)

    def _chunks(self, start: bytes) -> Iterator[_Opened]:
        """What is in the chunks of a file that begins so."""
        key, offset, rest = self._payload_key(start)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="pybackup-decrypt")
        for opened in in_order(self._pool, self._batches(key, offset, rest), AHEAD, AHEAD_SIZE):
            if opened.wrong and not self._tolerant:
                # What is sound in front of the damage comes first, and then nothing.
                yield opened._replace(wrong=[])
                raise opened.wrong[0]
            yield opened
            if opened.is_end:
                return

    def _payload_key(self, start: bytes) -> tuple[PayloadKey, int, bytes]:
        """(the key, where the chunks begin, what was read of them)."""
        header = None
        size = 0
        while header is None:
            size += HEAD
            start = self._whole(size, start)
            try:
                header = parse_header(start, is_all=len(start) < size)
            except FormatError as error:
                raise header_is_wrong(error) from None
        file_key = self._keys.file_key(header, self._name)
        offset = header.size + NONCE_SIZE
        start = self._whole(offset, start)
        if len(start) < offset:
            raise FormatError("it was cut short", len(start))
        return PayloadKey(file_key, start[header.size : offset]), offset, start[offset:]

    def _whole(self, size: int, start: bytes = b"") -> bytes:
        """``size`` bytes, which begin with what is there already; fewer only at the end of the file."""
        parts, missing = [start], size - len(start)
        while missing > 0 and (more := self._source(missing)):
            parts.append(more)
            missing -= len(more)
        return b"".join(parts) if len(parts) > 2 or start else parts[-1]

    def _batches(self, key: PayloadKey, offset: int, rest: bytes) -> Iterator[Sized]:
        """One batch is held back: only what follows tells whether it is the last."""
        number = 0
        batch = self._whole(BATCH * SEALED, rest)
        while True:
            follows = self._whole(BATCH * SEALED)
            is_end = not follows
            call = partial(_open, key, number, memoryview(batch), offset, is_end=is_end, tolerant=self._tolerant)
            yield Sized(2 * len(batch), call)
            if is_end:
                return
            number, offset, batch = number + BATCH, offset + len(batch), follows


def _open(key: PayloadKey, number: int, sealed: memoryview, offset: int, *, is_end: bool, tolerant: bool) -> _Opened:
    """Open a batch of chunks, of which the last may be the file's; without ``tolerant`` up to the first wrong one."""
    parts: list[bytes] = []
    wrong: list[FormatError] = []
    for at in range(0, max(1, len(sealed)), SEALED):
        one = sealed[at : at + SEALED]
        is_last = is_end and at + SEALED >= len(sealed)
        content = key.open(number, one, is_last=is_last)
        if content is None:
            error, content = _wrong(key, number, bytes(one), offset + at, is_last=is_last)
            wrong.append(error)
            if isinstance(error, _EndsEarlyError) or not tolerant:
                return _Opened(b"".join((*parts, content or b"")), wrong, is_end=True)
        parts.append(bytes(max(0, len(one) - TAG_SIZE)) if content is None else content)
        number += 1
    return _Opened(b"".join(parts), wrong, is_end)


class _EndsEarlyError(FormatError):
    """Behind the last chunk there is something, which nobody sealed."""


def _wrong(
    key: PayloadKey, number: int, sealed: bytes, offset: int, *, is_last: bool
) -> tuple[FormatError, bytes | None]:
    """What is wrong with a chunk that does not decrypt as what it is; and its content, where that is proved."""
    if is_last:
        return end_is_wrong(key, number, sealed, offset), key.open_cut_off(number, sealed)
    if (content := key.open(number, sealed, is_last=True)) is not None:
        behind = f"there is something behind byte {offset + len(sealed) - 1} of the encrypted file, which is its end"
        return _EndsEarlyError(behind), content
    return chunk_is_wrong(offset, len(sealed)), None
