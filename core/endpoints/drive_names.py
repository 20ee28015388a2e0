"""Names for drives: as the user gave them, or made of their files' names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Protocol

from pybackup.core.errors import RequestError
from pybackup.core.places.nbd_uri import is_nbd_uri, parse_nbd_uri
from pybackup.formats.text import storable, utf8_bytes

LONGEST = 100
"""Characters of a name made of an export's, which may have thousands."""


class NamedSource(Protocol):
    """A source that may have been given a name."""

    @property
    def name(self) -> str | None:
        """The name, if one was given."""
        ...

    @property
    def what(self) -> str:
        """The source itself."""
        ...


def drive_name(source: NamedSource) -> str:
    """The name given; or that of the export, or the file's name up to its first dot, as stored_name() has it."""
    if source.name:
        return stored_name(source.name)
    if source.what == "-":
        return "stdin"
    if is_nbd_uri(source.what):
        export = os.path.basename(parse_nbd_uri(source.what).export)
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", export).strip(".-")[:LONGEST] or "nbd"
    return stored_name(os.path.basename(source.what).lstrip(".").split(".")[0]) or "drive"


def stored_name(name: str) -> str:
    """A file's name as an archive holds it, the same in every locale: its bytes, where they are UTF-8.

    Else it is what the locale takes it for, and a byte that is no text stands there as %XX.
    """
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return storable(name)


def file_name(name: str) -> str:
    """The name of a file for a name in an archive: it has the same bytes, whatever the locale."""
    return os.fsdecode(utf8_bytes(name))


def source_label(what: str) -> str:
    """What an archive tells of its source: the last part of a path or URI, without where it lies."""
    return stored_name(os.path.basename(parse_nbd_uri(what).export if is_nbd_uri(what) else what))


def unique_drive_names(sources: Sequence[NamedSource]) -> list[str]:
    """drive_name() of each; RequestError if two are alike."""
    names = [drive_name(source) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two drives are called {name!r}; give them names: NAME=SOURCE")
    return names
