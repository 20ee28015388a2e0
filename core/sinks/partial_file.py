"""A file that is written under a temporary name, and gets its own name when it is whole.

The temporary file lies in the same folder, under a name made from the final one, and is locked with flock() while it
is written: so it is at once the partial output and the lock that keeps two runs from writing one target. A leftover of
a killed run holds no lock, and is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from pybackup.core.errors import BusyError, TargetError, TargetFullError
from pybackup.core.locked_file import open_locked


def partial_name(path: str) -> str:
    """The temporary name of the output ``path``."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.partial")


def target_failure(path: str, error: OSError, doing: str) -> TargetError:
    """The sentence for a failed operation on an output."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "no space is left" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return TargetFullError(f"cannot {doing} {path}: {reason}")
    return TargetError(f"cannot {doing} {path}: {error.strerror or error}")


class PartialFile:
    """An output file under construction.

    Fixed: the paths, whether an existing file may be replaced, and what to do with the parts after a failure.
    Changing: the descriptor, and whether the file has its name for good.
    """

    def __init__(self, path: str, *, replace: bool, keep_partial_as: str | None = None, mode: int = 0o666) -> None:
        self.path = path
        self.partial = partial_name(path)
        self._replace, self._keep, self._mode = replace, keep_partial_as, mode
        self.fd = -1
        self.committed = False

    def open(self) -> None:
        """Create and lock the temporary file; TargetError or BusyError with nothing changed."""
        self._check_target()
        try:
            self.fd = open_locked(self.partial, self._mode)
            os.ftruncate(self.fd, 0)
        except BlockingIOError:
            raise BusyError(f"another run is writing {self.path}") from None
        except FileNotFoundError:
            folder = os.path.dirname(self.path) or "."
            raise TargetError(f"cannot create {self.path}: the folder {folder} does not exist") from None
        except OSError as error:
            raise target_failure(self.path, error, "create") from error

    def _check_target(self) -> None:
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(self.path):
                raise TargetError(f"cannot create {self.path}: it is a link to a file that does not exist") from None
            return
        except OSError as error:
            raise target_failure(self.path, error, "create") from error
        if stat.S_ISDIR(found.st_mode):
            raise TargetError(f"cannot create {self.path}: it is a folder")
        if not stat.S_ISREG(found.st_mode):
            raise TargetError(f"cannot create {self.path}: it is no regular file, and no file replaces it")
        if not self._replace:
            raise TargetError(f"{self.path} exists already; --force replaces it")

    def commit(self) -> None:
        """Make the content durable, then give it the final name, then make the name durable."""
        try:
            os.fsync(self.fd)
            self._take_name()
            self._sync_folder()
            fd, self.fd = self.fd, -1
            os.close(fd)
            self.committed = True
        except OSError as error:
            raise target_failure(self.path, error, "finish") from error

    def _take_name(self) -> None:
        if not self._replace:
            try:
                # link() refuses an existing name, in one step; rename() would replace it.
                os.link(self.partial, self.path)
            except FileExistsError:
                raise TargetError(f"{self.path} appeared while it was being written; --force replaces it") from None
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                self._check_target()
            else:
                os.unlink(self.partial)
                return
        os.rename(self.partial, self.path)

    def _sync_folder(self) -> None:
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        except OSError as error:
            # Some network filesystems cannot sync a folder; their rename is durable by itself.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(folder)

    def abort(self, *, worth_keeping: bool = True) -> None:
        """Remove the temporary file, or leave it under the name that says it is partial. Never raises."""
        if self.fd < 0:
            return
        with contextlib.suppress(OSError):
            if self._keep is None or not worth_keeping:
                os.unlink(self.partial)
            else:
                os.rename(self.partial, self._keep)
        fd, self.fd = self.fd, -1
        with contextlib.suppress(OSError):
            os.close(fd)
