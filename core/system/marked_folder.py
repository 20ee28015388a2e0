"""A private folder of one process, which others can tell from everything else, and remove when the process was killed.

A name proves nothing: a folder with a month of archives may be called as ours are. So there is a file in it that says
what the folder is, and the process holds its lock. Nothing is removed but a folder whose mark can be locked, and of
that only what has the names that we give; never recursively.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from enum import Enum, auto

MARK = "pybackup.lock"
_CONTENT = b"This folder is for one run of pybackup, which removes it. While the run lives, it locks this file.\n"


class Life(Enum):
    """What can be told of the process whose folder something is, or was."""

    LIVES = auto()
    ENDED = auto()
    UNKNOWN = auto()
    """It may live: its folder, or the mark in it, is not ours to look at."""


class MarkedFolder:
    """Fixed: the path, and the prefixes that the names of all its entries have. Changing: the mark, until removed."""

    def __init__(self, path: str, prefixes: tuple[str, ...]) -> None:
        """Make it (OSError)."""
        self.path, self._prefixes = path, prefixes
        self._mark = -1
        os.mkdir(path, 0o700)
        try:
            self._mark = os.open(self.inside(MARK), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            # Without a lock nobody could tell that we live: then it gets no content, and nobody takes it for a mark.
            if _lock(self._mark):
                os.write(self._mark, _CONTENT)
        except BaseException:
            self.remove()
            raise

    def fileno(self) -> int:
        """The descriptor of the mark: whoever has it keeps the lock, and the folder counts as used."""
        return self._mark

    def inside(self, name: str) -> str:
        """The path of an entry."""
        return os.path.join(self.path, name)

    def remove(self) -> None:
        """Remove it, unless something of others is in it; a second time nothing happens, and nothing is raised."""
        with contextlib.suppress(OSError):
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _remove(self.path, fd, self._prefixes)
            finally:
                os.close(fd)
        if self._mark >= 0:
            os.close(self._mark)
            self._mark = -1


def remove_stale(path: str, prefixes: tuple[str, ...]) -> bool:
    """Remove a folder if it is provably a MarkedFolder of ours whose process has ended; whether it was removed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with _locked_mark(fd) as locked:
            return locked and _remove(path, fd, prefixes)
    except OSError:
        return False
    finally:
        os.close(fd)


def life_of(path: str) -> Life:
    """Of the process whose folder this is; one that has no folder any more has ended."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return Life.ENDED
    except OSError:
        return Life.UNKNOWN
    try:
        with _locked_mark(fd) as locked:
            return Life.ENDED if locked else Life.LIVES
    except FileNotFoundError:
        return Life.ENDED
    except OSError:
        return Life.UNKNOWN
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked_mark(folder: int) -> Iterator[bool]:
    """Hold the lock of the mark in a folder (OSError); False where there is no mark of ours, or somebody holds it."""
    fd = os.open(MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(fd)
        plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
        # It gets its content when it is locked: so one that has it, and is not locked, was left.
        yield plain and os.read(fd, len(_CONTENT) + 1) == _CONTENT and _lock(fd)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Whether we have the lock now; False also where the filesystem has no locks (OSError)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        raise
    return True


def _remove(path: str, folder: int, prefixes: tuple[str, ...]) -> bool:
    """Remove all entries and the folder, if all of them are ours (OSError)."""
    names = os.listdir(folder)
    if not all(_is_ours(name, folder, prefixes) for name in names):
        return False
    for name in names:
        os.unlink(name, dir_fd=folder)
    os.rmdir(path)
    return True


def _is_ours(name: str, folder: int, prefixes: tuple[str, ...]) -> bool:
    kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    return (name == MARK or name.startswith(prefixes)) and (stat.S_ISREG(kind) or stat.S_ISSOCK(kind))
