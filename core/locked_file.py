"""A file that is at once a record and a lock: whoever holds the lock owns it, and a dead process holds none."""

from __future__ import annotations

import contextlib
import fcntl
import os


def open_locked(path: str, mode: int) -> int:
    """Open the file, made with ``mode`` where there is none, and lock it with flock().

    Raises BlockingIOError where another holds the lock, OSError for other failures.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                # Whoever held the lock may have renamed or removed the file meanwhile: then it is not ours.
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
