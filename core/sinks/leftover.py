"""What lies under a name where a partial file of ours would: a run that is alive, what a killed one left, or foreign.

A partial file carries a mark, an extended attribute, until it has its own name. A leftover is removed, and never
written to: so it does not matter whether it is a second name of a finished file. What cannot be proven to be ours
stays as it is, and another name is taken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from pybackup.core.system.locked_file import lock

from .output_place import OutputPlace

MARK = "user.pybackup.partial"
_UNMARKED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})
"""What a filesystem answers that knows no such attributes."""


def mark(fd: int) -> None:
    """Say of an open file that it is partial, where the filesystem can."""
    with contextlib.suppress(OSError):
        os.setxattr(fd, MARK, b"")


def unmark(fd: int) -> None:
    """Take that back."""
    with contextlib.suppress(OSError):
        os.removexattr(fd, MARK)


@contextlib.contextmanager
def marked(place: OutputPlace, name: str) -> Iterator[None]:
    """Within the body a finished file is marked, where it can be: it is on its way out."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place.fd)
    except OSError:
        yield
        return
    try:
        mark(fd)
        yield
    finally:
        unmark(fd)
        with contextlib.suppress(OSError):
            os.close(fd)


def is_marked(fd: int) -> bool | None:
    """Whether an open file is said to be partial; None where the filesystem cannot say it."""
    try:
        os.getxattr(fd, MARK)
    except OSError as error:
        return None if error.errno in _UNMARKED else False
    return True


def clear(place: OutputPlace, name: str, *, only_marked: bool = False) -> bool:
    """Remove what a killed run of ours left under a name of the folder; whether the name is free now.

    ``only_marked``: what has no mark is not ours. Raises BlockingIOError where a run that is alive holds it,
    NoLocksError, OSError.
    """
    while (found := place.lstat(name)) is not None:
        if not stat.S_ISREG(found.st_mode) or _is_planted(place, found):
            return False
        try:
            with _opened(place, name) as fd:
                lock(fd)
                if not _is_still(place, name, fd):
                    continue
                if not (is_marked(fd) if only_marked else _is_leftover(fd)):
                    return False
                unmark(fd)  # it may be a finished file, which has another name
                os.unlink(name, dir_fd=place.fd)
        except FileNotFoundError:
            continue
        except PermissionError:
            return False
    return True


def _is_still(place: OutputPlace, name: str, fd: int) -> bool:
    now = place.lstat(name)
    return now is not None and os.path.samestat(now, os.fstat(fd))


@contextlib.contextmanager
def _opened(place: OutputPlace, name: str) -> Iterator[int]:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, os.O_RDWR | flags, dir_fd=place.fd)  # an NFS lock wants a file that can be written
    except PermissionError:
        fd = os.open(name, os.O_RDONLY | flags, dir_fd=place.fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_planted(place: OutputPlace, found: os.stat_result) -> bool:
    """Another user's file, where everybody can put one; elsewhere its lock is respected."""
    return found.st_uid != os.geteuid() and bool(os.fstat(place.fd).st_mode & stat.S_IWOTH)


def _is_leftover(fd: int) -> bool:
    """Whether a file that nobody has locked is what a run of ours left: of this user, and marked, linked or empty.

    Where the filesystem knows no marks, the name and the owner must do.
    """
    found = os.fstat(fd)
    if found.st_uid != os.geteuid():
        return False
    return is_marked(fd) is not False or found.st_nlink > 1 or not found.st_size
