"""Names of drives, files and archives as they are shown: none may steer a terminal, or break a line."""

from __future__ import annotations


def printable(text: object) -> str:
    """Text without control characters."""
    return "".join(one if one.isprintable() else "?" for one in str(text))
