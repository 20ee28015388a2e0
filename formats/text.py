"""Text that comes from elsewhere: file names, and the strings of archives and servers.

Python holds bytes that are not of a text's encoding as lone surrogates (PEP 383). Which bytes those are depends on the
locale of the process, so such text must neither be compared nor stored as it is.
"""

from __future__ import annotations

_FIRST, _LAST = 0xDC80, 0xDCFF


def utf8_bytes(text: str) -> bytes:
    """The bytes that a name has in an archive. UnicodeEncodeError for surrogates that stand for no byte."""
    return text.encode("utf-8", "surrogateescape")


def from_utf8(content: bytes) -> str:
    """The one way to read such bytes: valid UTF-8 as what it says, any other byte as its surrogate."""
    return content.decode("utf-8", "surrogateescape")


def storable(text: str) -> str:
    """A name as UTF-8 can hold it: each byte that is no text stands there as %XX."""
    text = "".join("\ufffd" if 0xD800 <= ord(c) <= 0xDFFF and not _is_byte(c) else c for c in text)
    return "".join(f"%{ord(c) - 0xDC00:02X}" if _is_byte(c) else c for c in from_utf8(utf8_bytes(text)))


def shown(text: str) -> str:
    """The text on one line, without what could steer a terminal, hide, or turn the line around: that is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def encodable(text: str) -> str:
    """The text without surrogates, which are no characters: JSON with them cannot be read everywhere."""
    return "".join(_escaped(c) if 0xD800 <= ord(c) <= 0xDFFF else c for c in text)


def _is_byte(character: str) -> bool:
    return _FIRST <= ord(character) <= _LAST


def _escaped(character: str) -> str:
    if _is_byte(character):
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
