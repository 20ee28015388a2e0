"""Names for drives: as the user gave them, or made of their files' names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Protocol

from .errors import RequestError
from .nbd_uri import is_nbd_uri, parse_nbd_uri

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
    """The name given; or that of the export, or the file's name up to its first dot."""
    if source.name:
        return source.name
    if source.what == "-":
        return "stdin"
    if is_nbd_uri(source.what):
        export = os.path.basename(parse_nbd_uri(source.what).export)
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", export).strip(".-")[:LONGEST] or "nbd"
    return os.path.basename(source.what).lstrip(".").split(".")[0] or "drive"


def source_label(what: str) -> str:
    """What an archive tells of its source: the last part of a path or URI, without where it lies."""
    return os.path.basename(parse_nbd_uri(what).export) if is_nbd_uri(what) else os.path.basename(what)


def unique_drive_names(sources: Sequence[NamedSource]) -> list[str]:
    """drive_name() of each; RequestError if two are alike."""
    names = [drive_name(source) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two drives are called {name!r}; give them names: NAME=SOURCE")
    return names
