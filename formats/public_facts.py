"""What an encrypted archive tells everybody: a stanza in the header of its file, which no recipient is.

Every program that reads age passes over stanzas that it does not know, and the header's MAC covers them. So who has no
key can tell archives apart and see which of them need which; who has one sees that nobody has changed it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .age_header import Stanza
from .errors import FormatError
from .text import from_utf8, utf8_bytes
from .vma import Header

KIND = "pybackup-vma/public-facts"
MAX_BODY = 96 << 10
"""Bytes, so that it stays within what a header may take."""
_ID_SIZE = 16


@dataclass(frozen=True, slots=True)
class PublicFacts:
    """The facts. ``created``: seconds since 1970; ``drives``: (name, size in bytes).

    ``parent``: of a delta, its parent's uuid, and the digest of that one's directory.
    """

    uuid: bytes
    created: int
    drives: Sequence[tuple[str, int]]
    parent: tuple[bytes, bytes] | None = None

    @classmethod
    def of_header(cls, header: Header) -> PublicFacts:
        """Those of an archive."""
        parent = (header.parent_uuid, header.parent_index_digest) if header.is_delta else None
        return cls(header.uuid, header.created, tuple((drive.name, drive.size) for drive in header.drives), parent)

    def stanza(self) -> Stanza:
        """The facts in a header (FormatError where they are too many)."""
        told: dict[str, Any] = {"uuid": self.uuid.hex(), "created": self.created, "drives": self.drives}
        if self.parent is not None:
            told["parent"] = [one.hex() for one in self.parent]
        body = utf8_bytes(json.dumps(told, separators=(",", ":"), ensure_ascii=False))
        if len(body) > MAX_BODY:
            raise FormatError("the names of its drives are too long to be told in the header of an encrypted file")
        return Stanza(KIND, ("1",), body)


def facts_in(stanzas: Sequence[Stanza]) -> PublicFacts | None:
    """What a header tells; None where it tells nothing (FormatError where that makes no sense)."""
    found = next((stanza for stanza in stanzas if stanza.kind == KIND and tuple(stanza.arguments) == ("1",)), None)
    if found is None:
        return None
    try:
        return _facts(json.loads(from_utf8(found.body)) if len(found.body) <= MAX_BODY else None)
    except (ValueError, TypeError, LookupError, RecursionError):
        raise FormatError("what its header tells everybody is damaged") from None


def _facts(told: Any) -> PublicFacts:
    """ValueError, TypeError or LookupError where it is not what stanza() writes."""
    parent = told.get("parent") if isinstance(told, dict) else None
    drives = tuple((_text(name), _whole(size)) for name, size in told["drives"])
    return PublicFacts(
        _id(told["uuid"]), _whole(told["created"]), drives, None if parent is None else (_id(parent[0]), _id(parent[1]))
    )


def _id(told: object) -> bytes:
    found = bytes.fromhex(told) if isinstance(told, str) else b""
    # Digits with blanks between them are fewer.
    if len(found) != _ID_SIZE or told != found.hex():
        raise ValueError
    return found


def _whole(told: object) -> int:
    if not isinstance(told, int) or isinstance(told, bool) or not 0 <= told < 1 << 63:
        raise ValueError
    return told


def _text(told: object) -> str:
    if not isinstance(told, str):
        raise ValueError
    return told
