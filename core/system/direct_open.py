"""A second descriptor of an open file, for reads or writes past its page cache."""

from __future__ import annotations

import os


def open_direct(fd: int, access: int) -> int:
    """The same file opened once more with O_DIRECT; -1 where its filesystem, or /proc, does not let us.

    ``access``: os.O_RDONLY or os.O_WRONLY. Through /proc, for the file may have lost its name.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", access | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1
