"""Names for drives: as the user gave them, or made of their files' names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from .errors import RequestError


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
    """The name given, or the file's name up to its first dot."""
    if source.name:
        return source.name
    if source.what == "-":
        return "stdin"
    return os.path.basename(source.what).lstrip(".").split(".")[0] or "drive"


def unique_drive_names(sources: Sequence[NamedSource]) -> list[str]:
    """drive_name() of each; RequestError if two are alike."""
    names = [drive_name(source) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two drives are called {name!r}; give them names: NAME=SOURCE")
    return names
