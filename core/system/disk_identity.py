"""What tells a disk from others after a restart of the machine: more than a name, which may be another disk's by then.

A file carries a mark, an extended attribute, where its filesystem can; else its inode must do. A block device is known
by what /sys tells of it: a serial number or the like.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

MARK = "user.pybackup.restoring"
_WHOLE = "whole "
_NO_MARKS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})
_TELLING = ("dm/uuid", "wwid", "device/wwid", "device/serial", "serial", "md/uuid", "loop/backing_file")


def mark(fd: int, text: str) -> bool:
    """Mark an open file; whether its filesystem can (OSError)."""
    try:
        os.setxattr(fd, MARK, text.encode())
    except OSError as error:
        if error.errno in _NO_MARKS:
            return False
        raise
    return True


def mark_whole(fd: int, text: str) -> None:
    """Say in the mark, if there is one, that all is there: before its map goes, and known for the same disk still."""
    with contextlib.suppress(OSError):
        os.setxattr(fd, MARK, (_WHOLE + text).encode(), os.XATTR_REPLACE)
        os.fsync(fd)


def tells_incomplete(path: str) -> bool:
    """Whether the mark of a file, wherever its map is, says that not all of it is there."""
    try:
        return not os.getxattr(path, MARK).startswith(_WHOLE.encode())
    except OSError:
        return False


def unmark(fd: int) -> None:
    """Take the mark away, if there is one."""
    try:
        os.removexattr(fd, MARK)
    except OSError:
        return  # it does no harm


def mark_of(fd: int) -> str | None:
    """The mark of an open file, "" where it has none; None where its filesystem can give it none."""
    try:
        return os.getxattr(fd, MARK).decode(errors="replace").removeprefix(_WHOLE)
    except OSError as error:
        return "" if error.errno == errno.ENODATA else None


def told_of(fd: int, sys: Path = Path("/sys")) -> str:
    """What tells an open disk from others: of a file its inode, of a block device what /sys says, or nothing."""
    info = os.fstat(fd)
    if not stat.S_ISBLK(info.st_mode):
        return f"inode {info.st_ino}"
    folder = sys / "dev" / "block" / f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    found = ((one, _read(folder / one)) for one in _TELLING)
    named = [f"{one} {text}" for one, text in found if text]
    partition = _read(folder / "partition")
    if partition:
        parent = ((one, _read(folder.resolve().parent / one)) for one in _TELLING)
        named = [f"partition {partition} of {one} {text}" for one, text in parent if text]
    return named[0][:512] if named else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
