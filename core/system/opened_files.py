"""Which files are open, and who could open them: what the kernel knows of files, whatever they are called."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import stat
from collections.abc import Iterator

from pybackup.core.errors import SourceError


def open_for_reading(path: str) -> int:
    """Open a file for reading (OSError). A large VMDK has a thousand extents: as many may be open as the system allows.

    Programs that we start may have as many open from then on, too.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except OSError as error:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if error.errno != errno.EMFILE:
            raise
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return os.open(path, flags)


def identity_of(info: os.stat_result) -> tuple[int, int]:
    """Of a file; of a block device, whichever name it has."""
    return (-1, info.st_rdev) if stat.S_ISBLK(info.st_mode) else (info.st_dev, info.st_ino)


def opened_by(process: int) -> Iterator[tuple[int, int]]:
    """The files and block devices that a process has open, but for its standard ones."""
    folder = f"/proc/{process}/fd"
    try:
        numbers = [name for name in os.listdir(folder) if int(name) > 2]
    except OSError as error:
        raise SourceError(f"cannot see which files QEMU reads: {error.strerror}") from error
    for name in numbers:
        try:
            info = os.stat(f"{folder}/{name}")
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue  # it was closed meanwhile
            raise SourceError(f"cannot see which files QEMU reads: {error.strerror}") from error
        if stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode):
            yield identity_of(info)


def may_read(uid: int, gid: int, info: os.stat_result) -> bool:
    """Whether a user could read a file by its mode."""
    if uid in (0, info.st_uid) or info.st_mode & stat.S_IROTH:
        return True
    return bool(info.st_mode & stat.S_IRGRP) and info.st_gid in _groups(uid, gid)


def _groups(uid: int, gid: int) -> set[int]:
    try:
        user = pwd.getpwuid(uid)
        return {gid, *os.getgrouplist(user.pw_name, user.pw_gid)}
    except (KeyError, OSError):
        return {gid}
