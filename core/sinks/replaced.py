"""What an output may replace, when it is told to: never something of another kind than itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from pybackup.core.errors import Advice, TargetError

from .archive_evidence import TAIL_BYTES, marks_of_archive
from .archive_signs import is_archive
from .output_place import OutputPlace
from .target_failure import target_failure

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
    None where it may (OSError). ``question``: what is said of what is no regular file at all.
    """

    refusal: Callable[[int, str], str | None]
    question: str = ""


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


ARCHIVES = Replaced(_no_archive, f": {_FORGOTTEN}")
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


def _refusal(place: OutputPlace, replaced: Replaced) -> str | None:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(place.name, flags, dir_fd=place.fd)
    try:
        return replaced.refusal(fd, place.name)
    finally:
        os.close(fd)
