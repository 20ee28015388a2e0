"""A file that is written under a temporary name, and gets its own name when it is whole.

The temporary file lies in the same folder, under a name made from the final one, and is locked with flock() while it
is written: so it is at once the partial output and the lock that keeps two runs from writing one target. It is always
a new file (see leftover.py), and what gets the final name is the file that was written, whatever lies under the
temporary name by then.

All that can fail comes before the final name, or can be taken back: the old file is kept until the folder with the
new name is durable.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from pybackup.core.errors import Advice, BusyError, TargetError
from pybackup.core.system.locked_file import NoLocksError, lock

from . import leftover
from .output_place import OutputPlace, open_place
from .rename import exchange, rename_to_new
from .replaced import DISKS, Replaced, alone, check_replaced
from .target_failure import target_failure

MOST_NAMES = 8
"""Temporary names that are tried, while something foreign lies under each."""
MOST_TRIES = 100
"""Runs that begin at the same moment take each other's new file for a leftover, and make another."""
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class PartialFile:
    """An output file under construction.

    Fixed: the path, what it may replace, and what to do with the parts after a failure. Changing: the place, once it
    is open; ``fd``; ``partial``, the path of the temporary file; ``committed``, whether the file has its name for good;
    ``kept``, under which path a failed one was left.
    """

    def __init__(
        self,
        path: str,
        *,
        replace: bool,
        replaced: Replaced = DISKS,
        keep_partial: bool = False,
        mode: int = 0o666,
        folders_from: str | None = None,
    ) -> None:
        """``keep_partial``: after a failure it is left as PATH.partial. ``folders_from``: see open_place()."""
        self.path = path
        self.partial = ""
        self._replace, self._replaced = replace, replaced
        self._keep, self._mode, self._folders_from = keep_partial, mode, folders_from
        self._place: OutputPlace | None = None
        self._name = ""
        self.fd = -1
        self.committed = False
        self.kept: str | None = None

    @property
    def own_path(self) -> str:
        """A path by which this process and its children find the file that is open, whatever becomes of its names."""
        found = f"/proc/{os.getpid()}/fd/{self.fd}"
        return found if os.path.exists(found) else self.partial

    # -- begin --

    def open(self) -> None:
        """Create and lock the temporary file; TargetError or BusyError with nothing changed."""
        self._place = place = open_place(self.path, self._folders_from)
        try:
            old = check_replaced(place, self.path, self._replaced, replace=self._replace)
            if old is not None:
                with alone(place, self.path, self._replaced):
                    """Here already: at the end it would have cost a whole run."""
            self._create(place)
        except BlockingIOError:
            raise BusyError(f"another run is writing {self.path}") from None
        except NoLocksError as error:
            raise TargetError(
                f"cannot create {self.path}: its filesystem has no locks ({error.strerror}), which keep two runs apart;"
                " mount it with locks (for NFS: without nolock, and with rpc.statd running), or write to another"
                " filesystem and copy the file"
            ) from error
        except OSError as error:
            raise target_failure(self.path, error, "create") from error
        finally:
            if not self.partial:
                self._close()
                place.remove_made()

    def _create(self, place: OutputPlace) -> None:
        for _ in range(MOST_TRIES):
            self._name = self._free_name(place)
            with contextlib.suppress(FileExistsError):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self.fd = os.open(self._name, flags, self._mode, dir_fd=place.fd)
                if self._lock_new(place):
                    self.partial = place.path_of(self._name)
                    return
                fd, self.fd = self.fd, -1
                os.close(fd)
        raise BlockingIOError

    def _free_name(self, place: OutputPlace) -> str:
        """The first name under which nothing lies, or no more; BlockingIOError where a run is alive under any."""
        names = [place.beside(".", f".{number}.partial" if number else ".partial") for number in range(MOST_NAMES)]
        free = [name for name in names if leftover.clear(place, name)]
        if not free:
            raise TargetError(
                f"cannot create {self.path}: {place.path_of(names[0])}, and all other names for what is not complete"
                " yet, are taken by files that are not this program's; remove them"
            )
        return free[0]

    def _lock_new(self, place: OutputPlace) -> bool:
        """Whether the new file is locked, and still the one under its name; where it fails, it is removed."""
        try:
            lock(self.fd)
            leftover.mark(self.fd)
            return self._lies_under(self._name)
        except BlockingIOError:
            return False
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=place.fd)
            raise

    # -- the end --

    def sync(self) -> None:
        """Make the content durable (TargetError)."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise target_failure(self.path, error, "finish") from error

    def commit(self) -> None:
        """Make the content durable, then give it the final name, then make the name durable."""
        self.sync()
        self.take_name()

    def take_name(self) -> None:
        """Give the file its name, durably. TargetError: it does not have it, and what was there is there still."""
        assert self._place is not None
        try:
            written = os.fstat(self.fd)
            self._refuse_removed(written)
            old = check_replaced(self._place, self.path, self._replaced, replace=self._replace)
            # First without the name: a folder that cannot be synced is found out before anything has changed.
            self._place.sync()
            if old is None:
                self._appear(self._place, written)
            else:
                self._take_over(self._place, old)
        except FileExistsError:
            raise TargetError(f"{self.path} appeared while it was being written", advice=Advice.REPLACE) from None
        except OSError as error:
            raise target_failure(self.path, error, "finish") from error
        self.committed = True
        leftover.unmark(self.fd)
        if self._keep:
            self._remove_kept(self._place)
        self._close()

    def _refuse_removed(self, written: os.stat_result) -> None:
        if not written.st_nlink:
            raise TargetError(
                f"cannot finish {self.path}: {self.partial} was removed while it was being written, and what is written"
                " cannot be given a name any more"
            )

    def _appear(self, place: OutputPlace, written: os.stat_result) -> None:
        """Take a name that nobody has: FileExistsError where somebody has it by now."""
        if self._lies_under(self._name) and rename_to_new(place.fd, self._name, place.name):
            self._settle(place, lambda: self._go_back(place))
            return
        try:
            self._link(place)
        except OSError as error:
            if error.errno not in _NO_LINKS or not self._lies_under(self._name):
                raise
            if place.lstat() is not None:
                raise FileExistsError from None
            self._rename(place, self._name, place.name)
        self._settle(place, lambda: self._go_back(place))
        self._unlink_if(place, written)

    def _link(self, place: OutputPlace) -> None:
        """Link the open file, and not what lies under its name; without /proc the name has to do, and is checked."""
        try:
            os.link(f"/proc/self/fd/{self.fd}", place.name, dst_dir_fd=place.fd, follow_symlinks=True)
        except FileNotFoundError:
            os.link(self._name, place.name, src_dir_fd=place.fd, dst_dir_fd=place.fd, follow_symlinks=False)

    def _take_over(self, place: OutputPlace, old: os.stat_result) -> None:
        """Replace the file that is there, which is kept until the new name is durable."""
        if not self._lies_under(self._name):
            raise self._moved()
        # What lies under our name for a moment shall be known as a leftover.
        with alone(place, self.path, self._replaced), leftover.marked(place, place.name):
            if not exchange(place.fd, self._name, place.name):
                self._rename(place, self._name, place.name)
                # This cannot be taken back: no reason to say that it is not there. A moment ago the folder was sound.
                with contextlib.suppress(OSError):
                    place.sync()
                return
            self._settle(place, lambda: self._exchange_back(place, old))
            self._unlink_if(place, old)

    def _unlink_if(self, place: OutputPlace, known: os.stat_result) -> None:
        """Remove what lies under the temporary name, if it is this; the next run removes what cannot be now."""
        for _ in range(2):
            with contextlib.suppress(OSError):
                if self._is_under(self._name, known):
                    os.unlink(self._name, dir_fd=place.fd)
                return

    def _settle(self, place: OutputPlace, undo: Callable[[], None]) -> None:
        """The new name is there: look at it, and make it durable; else take it back."""
        try:
            if not place.is_here(os.fstat(self.fd)):
                raise self._moved()
            place.sync()
        except BaseException:
            with contextlib.suppress(OSError):
                undo()
            raise

    def _go_back(self, place: OutputPlace) -> None:
        if not self._lies_under(place.name):
            return
        if place.lstat(self._name) is None:
            self._rename(place, place.name, self._name)
        else:
            os.unlink(place.name, dir_fd=place.fd)

    def _exchange_back(self, place: OutputPlace, old: os.stat_result) -> None:
        if self._is_under(self._name, old):
            exchange(place.fd, self._name, place.name)

    def _moved(self) -> TargetError:
        return TargetError(
            f"cannot finish {self.path}: the partial file, or its folder, was moved or replaced while it was written"
        )

    @staticmethod
    def _rename(place: OutputPlace, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=place.fd, dst_dir_fd=place.fd)

    def _is_under(self, name: str, known: os.stat_result) -> bool:
        """Whether this file is what lies under the name."""
        assert self._place is not None
        found = self._place.lstat(name)
        return found is not None and os.path.samestat(found, known)

    def _lies_under(self, name: str) -> bool:
        """Whether the open file is what lies under the name."""
        return self._is_under(name, os.fstat(self.fd))

    # -- what is left --

    def abort(self, *, worth_keeping: bool = True) -> None:
        """Remove the temporary file, or leave it under the name that says it is partial (``kept``). Never raises."""
        if self.fd < 0 or self._place is None:
            return
        with contextlib.suppress(OSError):
            if self._lies_under(self._name):
                if self._keep and worth_keeping:
                    self.kept = self._keep_partial(self._place)
                else:
                    os.unlink(self._name, dir_fd=self._place.fd)
        self._close()
        self._place.remove_made()

    def _keep_partial(self, place: OutputPlace) -> str:
        """Give it a name that says it is partial, and is nobody else's; that name's path."""
        for name in self._kept_names(place):
            with contextlib.suppress(OSError):
                if leftover.clear(place, name, only_marked=True):
                    if not rename_to_new(place.fd, self._name, name):
                        self._rename(place, self._name, name)
                    return place.path_of(name)
        return self.partial

    def _remove_kept(self, place: OutputPlace) -> None:
        """What earlier runs failed to write, this one has written."""
        for name in self._kept_names(place):
            with contextlib.suppress(OSError):
                leftover.clear(place, name, only_marked=True)

    @staticmethod
    def _kept_names(place: OutputPlace) -> list[str]:
        return [place.beside("", f".{number}.partial" if number else ".partial") for number in range(MOST_NAMES)]

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # all that it could tell, fsync() has told
                os.close(fd)
        if self._place is not None:
            self._place.close()
