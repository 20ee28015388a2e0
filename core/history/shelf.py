"""A place that archives are removed from: a folder, under locks, or a prefix of a store, which has none."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Protocol

from pybackup.core.archive.listing import Listed
from pybackup.core.errors import PybackupError, TargetError
from pybackup.core.places.kinds import HistoryPlace, StoreUrl
from pybackup.core.stores.remote_folder import RemoteFolder, open_remote_folder
from pybackup.core.system.locked_file import NoLocksError, lock

from .place_lock import place_lock


class InUseError(PybackupError):
    """An archive that cannot be removed now; the sentence is a clause that says why."""


class Shelf(Protocol):
    """What is done to the files of a place."""

    def hold(self, listed: Listed) -> None:
        """Keep others from building on an archive until release() (InUseError)."""
        ...

    def remove(self, listed: Listed, replacement: Listed | None) -> bool:
        """Remove an archive that is held; or put another in its place, and say whether that has its name now.

        TargetError where it cannot be.
        """
        ...

    def release(self) -> None:
        """Let go of all that is held."""
        ...

    def sync(self) -> None:
        """Make what was done durable (TargetError)."""
        ...


@contextlib.contextmanager
def open_shelf(place: HistoryPlace) -> Iterator[Shelf]:
    """A place for the one who removes archives there (BusyError where there is another, TargetError)."""
    if isinstance(place, StoreUrl):
        with open_remote_folder(place) as folder:
            yield RemoteShelf(folder)
        return
    with place_lock(place.path) as fd:
        shelf = LocalShelf(place.path, fd)
        try:
            yield shelf
        finally:
            shelf.release()


class LocalShelf:
    """A folder. Fixed: its descriptor. Changing: the archives that are held, by name, open and locked."""

    def __init__(self, path: str, fd: int) -> None:
        self._path, self._folder = path, fd
        self._held: dict[str, int] = {}

    def hold(self, listed: Listed) -> None:
        """Lock the file: a run that builds on it holds a shared lock, from before it looks whether it is there."""
        try:
            fd = self._held_by_another_name(listed.name)
            if fd is None:
                fd = self._opened_and_locked(listed.name)
        except BlockingIOError:
            raise InUseError("in use") from None
        except FileNotFoundError:
            raise InUseError("gone meanwhile") from None
        except NoLocksError as error:
            raise InUseError(f"cannot be locked ({error.strerror})") from None
        except OSError as error:
            raise InUseError(f"cannot be opened ({error.strerror})") from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or (found.st_size, found.st_mtime) != (listed.size, listed.modified):
            os.close(fd)
            raise InUseError("replaced meanwhile")
        self._held[listed.name] = fd

    def _held_by_another_name(self, name: str) -> int | None:
        """A descriptor of the file, if it has several names, and is held by one of them: who asks again is refused."""
        now = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        if now.st_nlink < 2:
            return None
        return next((os.dup(fd) for fd in self._held.values() if os.path.samestat(now, os.fstat(fd))), None)

    def _opened_and_locked(self, name: str) -> int:
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, os.O_RDONLY | flags, dir_fd=self._folder)
        try:
            try:
                lock(fd)
            except PermissionError:  # an NFS lock wants a file that can be written
                os.close(fd)
                fd = os.open(name, os.O_RDWR | flags, dir_fd=self._folder)
                lock(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def remove(self, listed: Listed, replacement: Listed | None) -> bool:
        """Unlink what is held, if that is still what has the name."""
        try:
            now = os.stat(listed.name, dir_fd=self._folder, follow_symlinks=False)
            if not os.path.samestat(now, os.fstat(self._held[listed.name])):
                raise OSError(errno.ESTALE, "it was replaced meanwhile")
            if replacement is not None:
                os.rename(replacement.name, listed.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                return True
            os.unlink(listed.name, dir_fd=self._folder)
        except OSError as error:
            raise TargetError(f"cannot remove {listed.place}: {error.strerror}") from error
        return False

    def release(self) -> None:
        """Close the files, which gives the locks back."""
        while self._held:
            os.close(self._held.popitem()[1])

    def sync(self) -> None:
        """Sync the folder, where its filesystem can."""
        try:
            os.fsync(self._folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise TargetError(f"cannot sync {self._path}: {error.strerror}") from error


class RemoteShelf:
    """A prefix of a store. There are no locks: what others may be building on, the plan leaves alone."""

    def __init__(self, folder: RemoteFolder) -> None:
        self._folder = folder

    def hold(self, listed: Listed) -> None:
        """Nothing can be done."""

    def remove(self, listed: Listed, replacement: Listed | None) -> bool:
        """Remove the object; one that takes its place keeps a name of its own, for objects cannot be renamed."""
        self._folder.remove(listed.name)
        return False

    def release(self) -> None:
        """Nothing is held."""

    def sync(self) -> None:
        """What a store has answered is durable."""
