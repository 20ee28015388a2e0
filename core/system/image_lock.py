"""The image lock that QEMU takes, so that no two programs use one image in ways that harm.

QEMU locks single bytes of the image with open-file-description locks (fcntl(2), F_OFD_SETLK; QEMU's
block/file-posix.c). All its locks are shared; it is the pair of bytes that says what conflicts:

    byte 100 + n   "I use permission n"
    byte 200 + n   "nobody else may use permission n"

Whoever comes sets its own bytes first, and then asks whether another holds an opposite byte.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable
from contextlib import suppress

from pybackup.core.errors import BusyError

CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE = range(4)
"""The permissions, by QEMU's numbers (BLK_PERM_*)."""

USES = 100
FORBIDS = 200
"""First byte of each group of locks."""

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock on 64-bit Linux: type, whence, start, length (bytes), pid (0 for these locks)."""

_UNSUPPORTED = frozenset({errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
_HELD = frozenset({errno.EAGAIN, errno.EACCES})


class ImageLock:
    """A lock on an open image, made by for_reading() or for_writing(); a context manager that releases it.

    Fixed: all. The kernel releases the lock, too, when the last copy of the descriptor is closed, or the process
    dies: it is never stale.
    """

    def __init__(self, fd: int, name: str, uses: Iterable[int], forbids: Iterable[int]) -> None:
        """Take the lock for the permissions in ``uses`` and against those in ``forbids``.

        ``fd`` stays the caller's and must be open for reading. Raises BusyError when another program holds what
        conflicts, and OSError when the kernel fails. ``note`` says why there is no lock, where the filesystem has none.
        """
        self._fd = fd
        self.note: str | None = None
        used, forbidden = list(uses), list(forbids)
        try:
            self._take([USES + n for n in used] + [FORBIDS + n for n in forbidden])
            conflict = self._any_held([FORBIDS + n for n in used] + [USES + n for n in forbidden])
        except OSError as error:
            self.release()
            if error.errno not in _UNSUPPORTED | _HELD:
                raise
            conflict = error.errno in _HELD
            self.note = None if conflict else f"no image lock on {name}: {error.strerror}"
        if conflict:
            self.release()
            raise BusyError(f"{name} is in use by another program (QEMU image lock)")

    @classmethod
    def for_reading(cls, fd: int, name: str) -> ImageLock:
        """Allow other readers, and nobody to write or resize. Raises as the constructor does."""
        return cls(fd, name, [CONSISTENT_READ], [WRITE, WRITE_UNCHANGED, RESIZE])

    @classmethod
    def for_writing(cls, fd: int, name: str) -> ImageLock:
        """Allow nobody else, but readers that put up with changes (qemu-img -U). Raises as the constructor does."""
        return cls(fd, name, [CONSISTENT_READ, WRITE, RESIZE], [WRITE, WRITE_UNCHANGED, RESIZE])

    def release(self) -> None:
        """Give the lock back; a second time, or after the descriptor was closed, it does nothing."""
        with suppress(OSError):
            _set(self._fd, fcntl.F_UNLCK, USES, FORBIDS + RESIZE + 1 - USES)

    def __enter__(self) -> ImageLock:
        """Return the lock, which is taken already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.release()

    def _take(self, offsets: list[int]) -> None:
        for offset in offsets:
            _set(self._fd, fcntl.F_RDLCK, offset, 1)

    def _any_held(self, offsets: list[int]) -> bool:
        return any(_is_held(self._fd, offset) for offset in offsets)


def is_written(fd: int) -> bool:
    """Whether another program has locked the open image to write to it; False where there are no locks."""
    return _another_holds(fd, USES + WRITE, USES + RESIZE)


def forbids_reading(fd: int) -> bool:
    """Whether another program has locked the open image so that nobody may rely on what it holds.

    That is a program that changes the disk in ways that no guest asked for (qemu-img commit, for one). False where
    there are no locks.
    """
    return _another_holds(fd, FORBIDS + CONSISTENT_READ)


def _another_holds(fd: int, *offsets: int) -> bool:
    with suppress(OSError):
        return any(_is_held(fd, offset) for offset in offsets)
    return False


def _set(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _is_held(fd: int, offset: int) -> bool:
    """True when another descriptor holds a lock, of any kind, on this byte."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    answer = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question))
    return bool(answer[0] != fcntl.F_UNLCK)
