"""Names of drives, files and archives as they are shown: none may steer a terminal, or break a line."""

from __future__ import annotations

from pybackup.formats.text import shown


def printable(text: object) -> str:
    """Text in which what is not printable is escaped."""
    return shown(str(text))
