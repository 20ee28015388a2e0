"""An encrypted archive read at any place: bytes [a, b) of it are in chunks a / 64 KiB to b / 64 KiB of the file.

That the last chunk is the last is proved first: only then is a place that is counted from the end what it was.
"""

from __future__ import annotations

from collections.abc import Callable

from pybackup.core.errors import Advice, ArchiveError
from pybackup.core.secrets.keys import Keys
from pybackup.formats.age_header import ARMOR, MAX_HEADER, AgeHeader, parse_header
from pybackup.formats.age_payload import CHUNK, NONCE_SIZE, Layout, PayloadKey
from pybackup.formats.errors import FormatError, UnsupportedError
from pybackup.formats.public_facts import PublicFacts, facts_in
from pybackup.formats.vma import Header

from .shared_cache import SharedCache

KEPT = 1 << 20
"""Bytes of chunks that are kept: those at the ends of ranges, where the next one often begins."""
HEAD = 16 << 10
"""Bytes that are read at the beginning of every archive, which are the whole header of an encrypted one."""


class EncryptedFile:
    """Reads at any place, from any thread.

    Fixed: the layout, the key, and ``size``, bytes of the archive within. Changing: the chunks that are kept.
    """

    def __init__(self, pread: Callable[[int, int], bytes], size: int, name: str, keys: Keys, head: bytes) -> None:
        """``pread`` and ``size`` of the file, of which ``head`` was read (NoKeyError, ArchiveError, OSError)."""
        self._pread = pread
        self._chunks: SharedCache[bytes] = SharedCache(KEPT, len)
        try:
            self.header = read_header(pread, size, head)
            file_key = keys.file_key(self.header, name)
            nonce = _within(pread, head, self.header.size, NONCE_SIZE, size)
            self._layout = Layout.of(self.header.size, size)
            self._key = PayloadKey(file_key, nonce)
            self._prove_end()
        except UnsupportedError as error:
            raise ArchiveError(f"{name}: {error.what}") from error
        except FormatError as error:
            raise ArchiveError(f"{name} is damaged: {error}", advice=Advice.SKIP_DAMAGED) from None
        self.size = self._layout.size

    def _prove_end(self) -> None:
        number = self._layout.chunks - 1
        sealed = self._pread(*self._layout.range_of(number, 1))
        content = self._key.open(number, sealed, is_last=True)
        if content is None:
            raise end_is_wrong(self._key, number, sealed, self._layout.place(number))
        self._chunks.put(number, content)

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly these bytes of the archive (OSError; FormatError where they do not decrypt)."""
        if not length:
            return b""
        if offset < 0 or offset + length > self.size:
            raise OSError(f"bytes {offset} to {offset + length} are not all in it")
        first, last = offset // CHUNK, (offset + length - 1) // CHUNK
        if first == last:
            at = offset - first * CHUNK
            return self._chunk(first)[at : at + length]
        parts = self._row(first, last)
        parts[0] = parts[0][offset - first * CHUNK :]
        parts[-1] = parts[-1][: offset + length - last * CHUNK]
        return b"".join(parts)

    def _chunk(self, number: int) -> bytes:
        return self._chunks.get(number, lambda: self._fetch(number, 1)[0])

    def _row(self, first: int, last: int) -> list[bytes]:
        """Chunks in a row: what is not kept at either end is fetched as one range, whose ends are kept."""
        before: list[bytes] = []
        behind: list[bytes] = []
        while first <= last and (found := self._chunks.peek(first)) is not None:
            before.append(found)
            first += 1
        while first <= last and (found := self._chunks.peek(last)) is not None:
            behind.insert(0, found)
            last -= 1
        if first > last:
            return before + behind
        fetched = self._fetch(first, last - first + 1)
        self._chunks.put(first, fetched[0])
        self._chunks.put(last, fetched[-1])
        return before + fetched + behind

    def _fetch(self, first: int, count: int) -> list[bytes]:
        offset, length = self._layout.range_of(first, count)
        sealed = memoryview(self._pread(offset, length))
        chunks: list[bytes] = []
        for number in range(first, first + count):
            at, size = self._layout.range_of(number, 1)
            is_last = number == self._layout.chunks - 1
            content = self._key.open(number, sealed[at - offset : at - offset + size], is_last=is_last)
            if content is None:
                raise chunk_is_wrong(at, size)
            chunks.append(content)
        return chunks


def read_header(pread: Callable[[int, int], bytes], size: int, head: bytes) -> AgeHeader:
    """The header of a file, of which ``head`` was read (FormatError, OSError)."""
    refuse_armor(head)
    while True:
        try:
            found = parse_header(head, is_all=len(head) >= size)
        except FormatError as error:
            raise header_is_wrong(error) from None
        if found is not None:
            return found
        more = min(size, 4 * len(head), MAX_HEADER)
        head += pread(len(head), more - len(head))


def refuse_armor(head: bytes) -> None:
    """UnsupportedError where a file is text, of which nothing can be read at its place."""
    if head.startswith(ARMOR):
        raise UnsupportedError(
            "it is armored, text that holds an encrypted file: decrypt it with `age -d`, and read what comes"
        )


def header_is_wrong(error: FormatError) -> FormatError:
    """A header that breaks its rules."""
    return FormatError(f"the header of its encryption is damaged: {error.what}", error.offset)


def chunk_is_wrong(offset: int, size: int) -> FormatError:
    """A chunk, by its place in the file, that is not what was written there."""
    return FormatError(
        f"bytes {offset} to {offset + size - 1} of the encrypted file do not decrypt: damaged, or changed"
    )


def end_is_wrong(key: PayloadKey, number: int, sealed: bytes, offset: int) -> FormatError:
    """What is at the end of a file and does not decrypt as its end."""
    if key.open_cut_off(number, sealed) is not None:
        return FormatError(f"it was cut short behind byte {offset + len(sealed) - 1} of the encrypted file")
    what = f"the end of the encrypted file, from byte {offset} on, does not decrypt: it was cut short, or is damaged"
    return FormatError(what)


def check_public_facts(encryption: AgeHeader | None, header: Header, name: str) -> None:
    """ArchiveError where an encrypted archive tells everybody something else than what is in it."""
    if encryption is None:
        return
    try:
        facts = facts_in(encryption.stanzas)
    except FormatError as error:
        raise ArchiveError(f"{name}: {error}") from error
    if facts is not None and facts != PublicFacts.of_header(header):
        raise ArchiveError(f"{name}: what its header tells everybody is not what is in the archive")


def _within(pread: Callable[[int, int], bytes], head: bytes, offset: int, length: int, size: int) -> bytes:
    """Bytes of a file whose beginning is known (FormatError where it ends before)."""
    if offset + length > size:
        raise FormatError("it was cut short", size)
    found = head[offset : offset + length]
    return found if len(found) == length else pread(offset, length)
