"""Whether two places are one file."""

from __future__ import annotations

import os

from .kinds import LocalPath, Place


def is_same_file(one: Place, other: Place) -> bool:
    """Whether both are paths of one file that exists."""
    if not isinstance(one, LocalPath) or not isinstance(other, LocalPath):
        return False
    return os.path.exists(one.path) and os.path.exists(other.path) and os.path.samefile(one.path, other.path)
