"""The exceptions of this layer: bytes that are not what they should be."""

from __future__ import annotations


class FormatError(Exception):
    """Bytes that break the rules of their format.

    ``what`` is a clause that can stand in a sentence; ``offset`` is where, in bytes from the start of the
    stream that was read, or None where no place can be named. ``of`` names that stream where it is not the file.
    """

    def __init__(self, what: str, offset: int | None = None, of: str = "") -> None:
        self.what = what
        self.offset = offset
        self.of = of
        super().__init__(what if offset is None else f"{what} (at byte {offset}{of and ' of ' + of})")


class NotAnArchiveError(FormatError):
    """The first bytes are not those of the expected format at all."""


class UnsupportedError(FormatError):
    """The bytes may be sound, but this version, or the way in which they are read, has no use for them."""
