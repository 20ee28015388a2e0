"""What an output may replace, when it is told to: never something of another kind than itself."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pybackup.core.errors import Advice, BusyError, TargetError
from pybackup.core.system.locked_file import lock

from .archive_evidence import TAIL_BYTES, marks_of_archive
from .archive_signs import is_archive
from .output_place import OutputPlace
from .target_failure import target_failure

_LOOK = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class Replaced:
    """What may be replaced by one kind of output.

    ``refusal``: of an open regular file that is not empty, and its name, why it may not, as the end of "PATH ...";
    None where it may (OSError). ``question``: what is said of what is no regular file at all. ``may_be_held``: others
    lock such a file for as long as they need it.
    """

    refusal: Callable[[int, str], str | None]
    question: str = ""
    may_be_held: bool = False


_FORGOTTEN = "was the archive's name forgotten? it comes last"
NO_ARCHIVE = f"is no archive, and only archives and empty files are replaced: {_FORGOTTEN}"
"""Why an archive does not replace what is there, as the end of "PATH exists already, and it"."""


def _no_archive(fd: int, name: str) -> str | None:
    return None if is_archive(fd, name) else NO_ARCHIVE


def _an_archive(fd: int, name: str) -> str | None:
    """Also a damaged one, of which most may yet be saved."""
    size = os.fstat(fd).st_size
    head, tail = os.pread(fd, TAIL_BYTES, 0), os.pread(fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
    marks = "is an archive" if is_archive(fd, name) else marks_of_archive(name, head, tail)
    return marks and f"{marks}, which no restored disk replaces: remove it first, if you mean it"


ARCHIVES = Replaced(_no_archive, f": {_FORGOTTEN}", may_be_held=True)
"""An archive replaces archives."""
DISKS = Replaced(_an_archive)
"""A restored disk replaces any file but an archive."""


def check_replaced(place: OutputPlace, path: str, replaced: Replaced, *, replace: bool) -> os.stat_result | None:
    """What is there to be replaced, or None; TargetError where it may not be. ``path`` is what the user called it."""
    try:
        found = place.lstat()
        if found is None:
            return None
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
            raise TargetError(f"cannot create {path}: it is {kind}{replaced.question}")
        refusal = _refusal(place, replaced) if found.st_size else None
    except OSError as error:
        raise target_failure(path, error, "look at" if replace else "create") from error
    if refusal is not None:
        raise TargetError(f"{path} exists already, and {refusal}")
    if not replace:
        raise TargetError(f"{path} exists already", advice=Advice.REPLACE)
    return found


@contextlib.contextmanager
def alone(place: OutputPlace, path: str, replaced: Replaced) -> Iterator[None]:
    """Within the body nobody begins to need what is there to be replaced (BusyError where somebody does already).

    Who makes a delta of an archive, or restores it to disks in use, has a shared lock on it (core/archive/held.py).
    """
    fd: int | None = None
    try:
        fd = _locked(place) if replaced.may_be_held else None
        yield
    except BlockingIOError:
        raise BusyError(
            f"{path} is not replaced: an archive is being made that needs it, or it is being restored to disks in use"
        ) from None
    finally:
        if fd is not None:
            os.close(fd)


def _locked(place: OutputPlace) -> int | None:
    """The file that is there, open and locked (BlockingIOError); None where there is none, or nobody can lock it."""
    for access in (os.O_RDONLY, os.O_RDWR):  # an NFS lock wants a file that can be written
        try:
            fd = os.open(place.name, access | _LOOK, dir_fd=place.fd)
        except OSError:
            return None
        try:
            lock(fd)
            return fd
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                raise
            if not isinstance(error, PermissionError):
                return None
    return None


def _refusal(place: OutputPlace, replaced: Replaced) -> str | None:
    fd = os.open(place.name, os.O_RDONLY | _LOOK, dir_fd=place.fd)
    try:
        return replaced.refusal(fd, place.name)
    finally:
        os.close(fd)
