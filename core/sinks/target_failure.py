"""The sentence for a failed operation on an output."""

from __future__ import annotations

import errno

from pybackup.core.errors import TargetError, TargetFullError

_FULL = {errno.ENOSPC: "no space is left", errno.EDQUOT: "the disk quota is used up"}
_REASONS = {errno.ENAMETOOLONG: "its name is longer than this filesystem allows"}


def target_failure(path: str, error: OSError, doing: str) -> TargetError:
    """What failed at the output ``path``, and why; ``doing`` is a verb: create, write, finish."""
    if error.errno in _FULL:
        return TargetFullError(f"cannot {doing} {path}: {_FULL[error.errno]}")
    return TargetError(f"cannot {doing} {path}: {_REASONS.get(error.errno or 0) or error.strerror or error}")
