"""renameat2(2): a file gets a name that nobody has, or two names are exchanged, each in one step."""

from __future__ import annotations

import ctypes
import errno
import os

_NOREPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""What a filesystem answers that cannot do it (NFS cannot do either)."""

_libc = ctypes.CDLL(None, use_errno=True)


def rename_to_new(folder: int, old: str, new: str) -> bool:
    """Rename within the open folder, unless ``new`` exists (FileExistsError, OSError). False: not known here."""
    return _renameat2(folder, old, new, _NOREPLACE)


def exchange(folder: int, one: str, other: str) -> bool:
    """Let two names of the open folder change places (OSError). False: not known here."""
    return _renameat2(folder, one, other, _EXCHANGE)


def _renameat2(folder: int, old: str, new: str, flags: int) -> bool:
    call = getattr(_libc, "renameat2", None)
    if call is None:
        return False
    if call(folder, os.fsencode(old), folder, os.fsencode(new), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), new)
