"""A folder for sockets that is ours alone, and that the next run removes where we were killed.

It is locked with flock() as long as somebody uses it; systemd-tmpfiles leaves such folders alone, too. Who makes one
first removes those that nobody uses any more. Only what cannot be anybody's data is ever removed: sockets and symbolic
links of our own, in a folder of our own with the mode and the name that we give.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator

PREFIX = "pybackup."
"""Not the ``pybackup-`` that people call their folders, and that releases used which do not lock theirs."""
_NAME = re.compile(re.escape(PREFIX) + "[a-z0-9_]{8}")


@contextlib.contextmanager
def private_folder(base: str | None = None) -> Iterator[str]:
    """The path of a new folder in ``base``, or in the temporary folder (OSError); removed in the end."""
    base = base or tempfile.gettempdir()
    _sweep(base)
    path, fd = _make(base)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            _remove(path, fd)
        os.close(fd)


def _make(base: str) -> tuple[str, int]:
    """A new folder, locked: its path, and a descriptor that holds the lock."""
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX, dir=base)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # somebody swept it away before we could lock it
        with contextlib.suppress(OSError):  # where nobody can lock, nobody sweeps
            fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_at(path, fd):
            return path, fd
        os.close(fd)


def _is_at(path: str, fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    return False


def _sweep(base: str) -> None:
    """Remove the folders of dead processes."""
    with contextlib.suppress(OSError):
        for name in os.listdir(base):
            if _NAME.fullmatch(name):
                _remove_if_left(os.path.join(base, name))


def _remove_if_left(path: str) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path, fd)
        finally:
            os.close(fd)


def _remove(path: str, fd: int) -> None:
    """Remove a locked folder with all that is in it, or nothing (OSError)."""
    names = os.listdir(fd)
    if all(_is_ours(os.lstat(name, dir_fd=fd)) for name in names) and _is_at(path, fd):
        for name in names:
            os.unlink(name, dir_fd=fd)
        os.rmdir(path)


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and (stat.S_ISSOCK(found.st_mode) or stat.S_ISLNK(found.st_mode))
