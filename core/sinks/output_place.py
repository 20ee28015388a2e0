"""Where a new file goes: in which folder, under which name, and that it may go there at all.

A link at the end of a path is followed, so that what is written lies where it points, but not one that another user
has put into a folder where everybody can. Everything after that is relative to the open folder, so that nobody who
moves folders about makes us write elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat

from pybackup.core.errors import TargetError

from .target_failure import target_failure

MOST_LINKS = 40
"""Links in a row, as in the kernel."""
LONGEST_NAME = 255
"""Bytes of a name where the filesystem does not say."""
_KERNELS = ("/proc", "/sys")
_DEVICES, _SHARED_MEMORY = "/dev", "/dev/shm"
_SHORTENED_BY = 16
"""Digits that stand for the end of a name that was cut."""


class OutputPlace:
    """An open folder, and the name of a file in it that may exist. Made by open_place().

    Fixed: all. ``fd`` may be without access to the folder's list of names, where nobody lets us read it.
    """

    def __init__(self, path: str, fd: int, made: list[str]) -> None:
        self.path = path
        self.folder, self.name = os.path.split(path)
        self.fd = fd
        self._made = made
        try:
            self._longest = os.pathconf(self.folder or ".", "PC_NAME_MAX")
        except (OSError, ValueError):
            self._longest = LONGEST_NAME

    def beside(self, before: str, after: str) -> str:
        """A name in the same folder, made of our own and what stands around it; shortened where it gets too long."""
        name = os.fsencode(self.name)
        room = self._longest - len(before) - len(after)
        if len(name) > room:
            head = name[: room - _SHORTENED_BY - 1]
            while head and name[len(head)] & 0xC0 == 0x80:  # not in the midst of a character
                head = head[:-1]
            name = head + b"." + hashlib.sha256(name).hexdigest()[:_SHORTENED_BY].encode()
        return before + os.fsdecode(name) + after

    def path_of(self, name: str) -> str:
        """The path of a name in the folder."""
        return os.path.join(self.folder, name)

    def lstat(self, name: str | None = None) -> os.stat_result | None:
        """What lies under a name, our own unless another is given (OSError); None for nothing."""
        try:
            return os.stat(self.name if name is None else name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_here(self, found: os.stat_result) -> bool:
        """Whether the path leads to this file: the folder may have been moved since it was opened."""
        try:
            return os.path.samestat(os.lstat(self.path), found)
        except OSError:
            return False

    def sync(self) -> None:
        """Make the folder's names durable (OSError)."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.sync()  # a folder that we may not read can only be synced with all the rest
            # Some network filesystems cannot sync a folder; their names are durable by themselves.
            elif error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise

    def close(self) -> None:
        """Let go of the folder; a second time nothing happens."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def remove_made(self) -> None:
        """Remove the folders that were made for this file, as far as they are empty."""
        _remove(self._made)


def open_place(path: str, folders_from: str | None = None) -> OutputPlace:
    """Find where a file goes, and open the folder (TargetError).

    ``folders_from``: a folder; those below it that the path needs are made where they are missing.
    """
    made: list[str] = []
    try:
        real = _followed(path)
        folder, name = os.path.split(real)
        if name in ("", ".", ".."):
            raise TargetError(f"cannot create {path}: it names a folder, and no file in it")
        if _is_new_or_file(real):  # of a device that is there, others know more to say
            _refuse_kernels_own(path, os.path.realpath(folder))
        if folders_from is not None:
            _make_folders(folder, folders_from, made)
        return OutputPlace(real, _open_folder(folder or "."), made)
    except FileNotFoundError:
        _remove(made)
        raise TargetError(f"cannot create {path}: the folder {os.path.dirname(path) or '.'} does not exist") from None
    except OSError as error:
        _remove(made)
        raise target_failure(path, error, "create") from error
    except TargetError:
        _remove(made)
        raise


def _open_folder(folder: str) -> int:
    flags = os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(folder, os.O_RDONLY | flags)
    except PermissionError:
        return os.open(folder, os.O_PATH | flags)


# -- links --


def _followed(path: str) -> str:
    """The path behind all links at its end (TargetError for what is not to be followed, OSError)."""
    real = path
    for _ in range(MOST_LINKS):
        try:
            found = os.lstat(real)
        except (FileNotFoundError, NotADirectoryError):
            if real == path:
                return real
            raise TargetError(f"cannot create {path}: it is a link to a file that does not exist") from None
        if not stat.S_ISLNK(found.st_mode):
            return real
        folder = os.path.dirname(real)
        _refuse_planted(path, found, os.stat(folder or "."))
        real = os.path.join(folder, os.readlink(real))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _refuse_planted(path: str, link: os.stat_result, folder: os.stat_result) -> None:
    """As the kernel's fs.protected_symlinks, which need not be set."""
    if folder.st_mode & stat.S_IWOTH and link.st_uid not in (os.geteuid(), folder.st_uid):
        raise TargetError(
            f"cannot create {path}: it is a link that another user has made in a folder where everybody can"
        )


# -- folders --


def _refuse_kernels_own(path: str, folder: str) -> None:
    """No new files where devices are, which would take memory, nor in the kernel's own filesystems (TargetError)."""
    if any(_is_below(folder, place) for place in _KERNELS):
        raise TargetError(f"cannot create {path}: {folder} is the kernel's, and no place for files")
    if _is_in_memory(folder) if _is_below(folder, _SHARED_MEMORY) else _is_among_devices(folder):
        raise TargetError(f"cannot create {path}: there is no such device, and a new file there would fill the memory")


def _is_new_or_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return True


def _is_below(folder: str, place: str) -> bool:
    return folder == place or folder.startswith(place + "/")


def _is_among_devices(folder: str) -> bool:
    return _is_below(folder, _DEVICES) or _is_in_memory(folder)


def _is_in_memory(folder: str) -> bool:
    """Whether the folder lies in the filesystem of the devices, mounted here or elsewhere (a chroot's /dev)."""
    try:
        number = os.stat(_DEVICES).st_dev
        return number != os.stat("/").st_dev and os.stat(folder).st_dev == number
    except OSError:
        return False


def _make_folders(folder: str, below: str, made: list[str]) -> None:
    """Make what is missing of ``folder``, but nothing outside of ``below`` (OSError)."""
    missing: list[str] = []
    while folder and len(folder) > len(below.rstrip("/")) and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for one in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another run made it just now
            os.mkdir(one)
            made.append(one)
        _sync_parent(one)


def _sync_parent(folder: str) -> None:
    parent = os.open(os.path.dirname(folder) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # the file's own folder is synced in the end, and that must not fail
            os.fsync(parent)
    finally:
        os.close(parent)


def _remove(made: list[str]) -> None:
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    made.clear()
