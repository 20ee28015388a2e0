"""Archives that are needed for as long as a process lives: nobody who removes archives by a rule removes them."""

from __future__ import annotations

import fcntl
import os

from pybackup.core.errors import ArchiveError
from pybackup.core.places.kinds import LocalPath

from .identity import ArchiveIdentity, read_identity


def hold(path: str, identity: ArchiveIdentity) -> int:
    """A shared lock on an archive's file, which whoever wants to remove it asks for alone (ArchiveError).

    The lock ends with the process. What was removed, or replaced, before it was taken is nobody's parent.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveError(f"cannot open {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveError(f"{path} is being removed by somebody") from None
        except OSError:
            pass  # A filesystem without locks: whoever removes archives has none either, and looks again.
        check_still_there(path, fd, identity)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_still_there(path: str, fd: int, identity: ArchiveIdentity) -> None:
    """That a path leads to the file that is open still, and that it is the same archive (ArchiveError)."""
    try:
        there, held = os.stat(path), os.fstat(fd)
    except OSError as error:
        raise ArchiveError(f"{path} was removed just now") from error
    same = (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)
    if not same or read_identity(LocalPath(path)).digest != identity.digest:
        raise ArchiveError(f"{path} was replaced just now")
