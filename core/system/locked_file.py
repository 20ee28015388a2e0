"""A file that is at once a record and a lock: whoever holds the lock owns it, and a dead process holds none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class NoLocksError(OSError):
    """The filesystem has no locks."""


def lock(fd: int) -> None:
    """Lock an open file with flock(): BlockingIOError where another holds the lock, NoLocksError, OSError.

    PermissionError where the filesystem (NFS) only locks what can be written, and this file cannot.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise NoLocksError(error.errno, error.strerror) from error
        if error.errno == errno.EBADF:
            raise PermissionError(errno.EACCES, error.strerror) from error
        raise


def open_locked(path: str, mode: int) -> int:
    """Open the file, made with ``mode`` where there is none, and lock it.

    Only a file that is ours, and has no other name: PermissionError for what somebody else may have put there.
    Raises BlockingIOError where another holds the lock, OSError for other failures.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
        try:
            _refuse_foreign(fd, path)
            lock(fd)
            with contextlib.suppress(FileNotFoundError):
                # Whoever held the lock may have renamed or removed the file meanwhile: then it is not ours.
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _refuse_foreign(fd: int, path: str) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it is not ours", path)
