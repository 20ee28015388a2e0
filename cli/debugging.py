"""PYBACKUP_DEBUG: every failure shows where in pybackup it comes from."""

from __future__ import annotations

import os

VARIABLE = "PYBACKUP_DEBUG"


def is_asked_for() -> bool:
    """Whether the variable is set, to anything but 0."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")
