"""The payload of an age v1 file (c2sp.org/age): chunks of 64 KiB, each sealed with its number, to be read at any place.

A chunk says by its nonce whether it is the last; only the last one tells that a file was not cut short, so it has to be
opened before anything is read whose place is counted from the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .age_header import hkdf
from .buffer import Buffer
from .errors import FormatError

CHUNK = 64 << 10
"""Bytes of content in each chunk but the last."""
TAG_SIZE = 16
SEALED = CHUNK + TAG_SIZE
"""Bytes of each chunk but the last, in the file."""
NONCE_SIZE = 16


class PayloadKey:
    """Opens and seals the chunks of one file, from any thread. Fixed: the key."""

    def __init__(self, file_key: bytes, nonce: bytes) -> None:
        """``nonce``: the 16 bytes behind the header."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._cipher: Any = ChaCha20Poly1305(hkdf(file_key, nonce, b"payload"))
        # Older versions of the package have no way into memory that is there.
        self._has_into = hasattr(self._cipher, "encrypt_into")
        self._wrong = InvalidTag

    def seal(self, number: int, content: Buffer, *, is_last: bool) -> bytes:
        """A chunk, by its number from 0 on."""
        sealed: bytes = self._cipher.encrypt(_nonce(number, is_last), content, None)
        return sealed

    def seal_into(self, number: int, content: Buffer, sealed: memoryview, *, is_last: bool) -> None:
        """The same, into memory of its size: nothing is allocated for it."""
        if self._has_into:
            self._cipher.encrypt_into(_nonce(number, is_last), content, None, sealed)
        else:
            sealed[:] = self.seal(number, content, is_last=is_last)

    def open(self, number: int, sealed: Buffer, *, is_last: bool) -> bytes | None:
        """What is in a chunk; None where it is not what was sealed as that."""
        if len(sealed) < TAG_SIZE or (is_last and number and len(sealed) == TAG_SIZE):
            return None
        try:
            content: bytes = self._cipher.decrypt(_nonce(number, is_last), sealed, None)
            return content
        except self._wrong:
            return None

    def open_cut_off(self, number: int, sealed: Buffer) -> bytes | None:
        """What is in a chunk at the end of a file that was cut off behind it; None where it is no whole chunk."""
        return self.open(number, sealed, is_last=False) if len(sealed) == SEALED else None


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if is_last else b"\x00")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the chunks lie. ``start``: where the first begins in the file; ``end``: the size of that; in bytes."""

    start: int
    end: int

    @classmethod
    def of(cls, header_size: int, file_size: int) -> Layout:
        """The layout of a file (FormatError where it was cut off so that its last chunk is none)."""
        found = cls(header_size + NONCE_SIZE, file_size)
        least = TAG_SIZE if found.chunks == 1 else TAG_SIZE + 1
        if file_size - found.place(found.chunks - 1) < least:
            raise FormatError("it was cut short", file_size)
        return found

    @property
    def chunks(self) -> int:
        """How many there are; one at least."""
        return max(1, -(-(self.end - self.start) // SEALED))

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return self.end - self.start - self.chunks * TAG_SIZE

    def place(self, number: int) -> int:
        """Where a chunk begins in the file."""
        return self.start + number * SEALED

    def range_of(self, first: int, count: int) -> tuple[int, int]:
        """(offset, length) in the file of chunks in a row."""
        offset = self.place(first)
        return offset, min(self.end, offset + count * SEALED) - offset
