"""The header of an age v1 file (c2sp.org/age): text that carries the file key, wrapped for each recipient.

Everything here comes before anything is authenticated, so all of it is bounded, and nothing of it costs arithmetic on
a curve: lines, stanzas, bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import FormatError, NotAnArchiveError

VERSION_LINE = b"age-encryption.org/v1\n"
ARMOR = b"-----BEGIN AGE ENCRYPTED FILE-----"
"""How a file begins that was made text of, which cannot be read at any place."""
FILE_KEY_SIZE = 16
MAC_SIZE = 32
COLUMNS = 64
"""Characters in a full line of a stanza's body; the line that ends it has fewer."""
MOST_STANZAS = 128
MOST_RECIPIENTS = MOST_STANZAS - 1
"""For whom we encrypt: beside their stanzas there may be one that tells everybody something."""
LONGEST_LINE = 4096
"""Bytes of a line: the longest that any program writes are 1,600, of a post-quantum key."""
MAX_HEADER = 256 << 10
"""Bytes of a header, at most."""

_BEGIN, _END = b"-> ", b"---"
_ARGUMENTS = re.compile(rb"[!-~]+(?: [!-~]+)*")


@dataclass(frozen=True, slots=True)
class Stanza:
    """What one recipient, or something that no recipient is, has in the header."""

    kind: str
    arguments: Sequence[str]
    body: bytes

    def encode(self) -> bytes:
        """Its lines."""
        text = to_base64(self.body)
        # The last line is shorter than the others, and so perhaps empty.
        lines = [text[at : at + COLUMNS] for at in range(0, len(text) + 1, COLUMNS)]
        return "".join(f"{line}\n" for line in ("-> " + " ".join((self.kind, *self.arguments)), *lines)).encode()


@dataclass(frozen=True, slots=True)
class AgeHeader:
    """A header that was read. ``size`` in bytes; ``covered``: those that the MAC is of."""

    stanzas: Sequence[Stanza]
    covered: bytes
    mac: bytes
    size: int

    def is_proved_by(self, file_key: bytes) -> bool:
        """Whether whoever made the header knew this file key."""
        return hmac.compare_digest(_mac(file_key, self.covered), self.mac)


def encode_header(stanzas: Sequence[Stanza], file_key: bytes) -> bytes:
    """The header, with its MAC."""
    covered = VERSION_LINE + b"".join(stanza.encode() for stanza in stanzas) + _END
    return covered + b" " + to_base64(_mac(file_key, covered)).encode() + b"\n"


def _mac(file_key: bytes, covered: bytes) -> bytes:
    return hmac.digest(hkdf(file_key, b"", b"header"), covered, "sha256")


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """32 bytes of HKDF-SHA-256 (RFC 5869), of which one block is all."""
    extracted = hmac.digest(salt or bytes(hashlib.sha256().digest_size), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def looks_encrypted(start: bytes) -> bool:
    """Whether a file that begins so is an age file, binary or armored."""
    return start.startswith((VERSION_LINE[:-1], ARMOR))


def parse_header(content: bytes, *, is_all: bool) -> AgeHeader | None:
    """The header at the beginning of a file; None where more of it is needed.

    ``is_all``: there is no more. FormatError for what is no header; NotAnArchiveError for what is none of version 1.
    """
    reader = _Lines(content[:MAX_HEADER], is_all=is_all, is_cut=len(content) >= MAX_HEADER)
    try:
        return _parse(reader)
    except _MoreError:
        return None


class _MoreError(Exception):
    """There may be more of the header than is here."""


class _Lines:
    """The lines of a text. Changing: the position."""

    def __init__(self, content: bytes, *, is_all: bool, is_cut: bool) -> None:
        self.content, self.at = content, 0
        self._is_all, self._is_cut = is_all, is_cut

    def next(self) -> bytes:
        """The next line without its end."""
        end = self.content.find(b"\n", self.at, self.at + LONGEST_LINE + 1)
        if end < 0:
            if len(self.content) - self.at > LONGEST_LINE:
                raise FormatError("a line of it is too long", self.at)
            if self._is_cut:
                raise FormatError(f"it is longer than {MAX_HEADER >> 10} KiB")
            if self._is_all:
                raise FormatError("the file ends within it", self.at)
            raise _MoreError
        line, self.at = self.content[self.at : end], end + 1
        return line


def _parse(lines: _Lines) -> AgeHeader:
    if (version := lines.next() + b"\n") != VERSION_LINE:
        is_other = version.startswith(VERSION_LINE.rpartition(b"/")[0])
        raise NotAnArchiveError("it is an age file of another version than 1" if is_other else "it is no age file", 0)
    stanzas: list[Stanza] = []
    while True:
        at = lines.at
        line = lines.next()
        if line.startswith(_BEGIN):
            if len(stanzas) == MOST_STANZAS:
                raise FormatError(f"it has more than {MOST_STANZAS} stanzas", at)
            stanzas.append(_stanza(line, lines, at))
        elif stanzas and line.startswith(_END + b" "):
            mac = from_base64(line[len(_END) + 1 :], at)
            if len(mac) != MAC_SIZE:
                raise FormatError("its MAC has the wrong length", at)
            return AgeHeader(tuple(stanzas), lines.content[: at + len(_END)], mac, lines.at)
        else:
            raise FormatError("a line of it is neither a stanza nor its end", at)


def _stanza(line: bytes, lines: _Lines, at: int) -> Stanza:
    told = line[len(_BEGIN) :]
    if not _ARGUMENTS.fullmatch(told):
        raise FormatError("the arguments of a stanza are damaged", at)
    kind, *arguments = told.decode().split(" ")
    body = bytearray()
    while True:
        at = lines.at
        line = lines.next()
        if len(line) > COLUMNS:
            raise FormatError("a line of a stanza's body is too long", at)
        body += from_base64(line, at)
        if len(line) < COLUMNS:
            return Stanza(kind, tuple(arguments), bytes(body))


def to_base64(content: bytes) -> str:
    """Base64 without padding."""
    return base64.b64encode(content).decode().rstrip("=")


def from_base64(text: bytes, at: int | None = None) -> bytes:
    """The bytes of base64 without padding, in the one way in which they can be written (FormatError)."""
    try:
        content = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        content = None
    if content is None or to_base64(content).encode() != text:
        raise FormatError("its base64 is damaged", at)
    return content
