"""The tree as a FUSE filesystem, which only can be read."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from pybackup.core.errors import RequestError, TargetError
from pybackup.core.system.extras import how_to_install

from .tree import SECTOR, ArchiveFolder, ConfigFile, DriveFile, Folder, PlaceFolder, node_at

BLOCK = 4096
"""Bytes that statfs(2) counts in."""


P = ParamSpec("P")
R = TypeVar("R")


def _telling(
    operation: Callable[Concatenate[Filesystem, P], R],
) -> Callable[Concatenate[Filesystem, P], R]:
    """The operation; of an I/O error, of which its caller learns no more, it tells why."""

    @functools.wraps(operation)
    def told(self: Filesystem, /, *arguments: P.args, **named: P.kwargs) -> R:
        try:
            return operation(self, *arguments, **named)
        except OSError as error:
            if error.errno == errno.EIO and error.strerror:
                self.tell_once(error.strerror)
            raise

    return told


class Filesystem:
    """What libfuse calls, from threads of its own.

    Fixed: the tree. Changing, under a lock: the files that are open.
    """

    use_ns = True

    def __init__(self, root: Folder, ready: Callable[[], None], tell: Callable[[str], None]) -> None:
        """``ready`` is called once, when the mount is there; ``tell`` with why something cannot be read."""
        self.was_ready = False
        self._root, self._ready, self._tell = root, ready, tell
        self._told = ""
        self._lock = threading.Lock()
        self._handles: dict[int, tuple[DriveFile | ConfigFile, ArchiveFolder | None]] = {}
        self._numbers = itertools.count(1)
        self._owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}

    def init(self, _path: str) -> None:
        """The mount is there."""
        self.was_ready = True
        self._ready()

    def tell_once(self, why: str) -> None:
        """Programs try again and again: the same is not told twice in a row."""
        with self._lock:
            is_new, self._told = why != self._told, why
        if is_new:
            self._tell(why)

    @_telling
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """What stat(2) tells."""
        if fh is not None and fh in self._handles:
            found = self._handles[fh][0].attributes()
        else:
            found = node_at(self._root, path)[0].attributes()
        at = int(found.time * 1_000_000_000)
        times = {"st_atime": at, "st_mtime": at, "st_ctime": at}
        links = 2 if stat.S_ISDIR(found.mode) else 1
        blocks = -(-found.stored // SECTOR)
        sizes = {"st_size": found.size, "st_blocks": blocks, "st_nlink": links, "st_blksize": BLOCK}
        return {"st_mode": found.mode, **sizes, **times, **self._owner}

    @_telling
    def readdir(self, path: str, _fh: int) -> list[str]:
        """The names in a folder."""
        node, _ = node_at(self._root, path)
        if not isinstance(node, ArchiveFolder | PlaceFolder):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return [".", "..", *node.names()]

    @_telling
    def open(self, path: str, flags: int) -> int:
        """Open a file to be read; its archive stays open as long."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        _, archive = node_at(self._root, path)
        if archive is not None:
            archive.take()
        try:
            node, _ = node_at(self._root, path)
            if not isinstance(node, DriveFile | ConfigFile):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        except BaseException:
            if archive is not None:
                archive.give_back()
            raise
        with self._lock:
            number = next(self._numbers)
            self._handles[number] = node, archive
        return number

    @_telling
    def read(self, _path: str, size: int, offset: int, fh: int) -> bytes:
        """Bytes of an open file."""
        return self._handles[fh][0].read(offset, size)

    def release(self, _path: str, fh: int) -> int:
        """The file is closed."""
        with self._lock:
            _, archive = self._handles.pop(fh)
        if archive is not None:
            archive.give_back()
        return 0

    def statfs(self, _path: str) -> dict[str, int]:
        """Nothing is free."""
        return {"f_bsize": BLOCK, "f_frsize": BLOCK, "f_namemax": 255}


def mount(
    root: Folder,
    folder: str,
    *,
    name: str,
    allow_other: bool,
    ready: Callable[[], None],
    tell: Callable[[str], None],
) -> None:
    """Show a tree in a folder until it is unmounted, or a signal ends it (RequestError, TargetError).

    ``name``: what mount(8) shows; ``allow_other``: other users than ours may read; ``tell`` is called with why
    something cannot be read, from any thread.
    """
    FUSE = _fuse()  # noqa: N806 - a class
    # libfuse ends the mount at these, if nobody else has taken them.
    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    kept = {number: signal.signal(number, signal.SIG_DFL) for number in taken}
    words = _Words()

    def is_there() -> None:
        words.let_pass()
        ready()

    shown = Filesystem(root, is_there, tell)
    options = {"allow_other": True} if allow_other else {}
    try:
        FUSE(
            shown,
            folder,
            foreground=True,
            ro=True,
            fsname=name.replace(",", "_").replace("\\", "_"),
            subtype="pybackup",
            default_permissions=True,
            **options,
        )
    except RuntimeError:
        # Where it did begin, this is but the number of the signal that ended it.
        if not shown.was_ready:
            raise TargetError(f"cannot mount at {folder}: {words.last() or 'FUSE does not say why'}") from None
    finally:
        words.let_pass()
        for number, handler in kept.items():
            signal.signal(number, handler)


class _Words:
    """What libfuse and fusermount3 print: kept until the mount is there, for our own sentence where it does not come.

    Changing: whether it is kept still.
    """

    def __init__(self) -> None:
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115 - read at the end
        sys.stderr.flush()
        self._stderr: int | None = os.dup(2)
        os.dup2(self._kept.fileno(), 2)

    def let_pass(self) -> None:
        """From now on they are printed."""
        if self._stderr is not None:
            os.dup2(self._stderr, 2)
            os.close(self._stderr)
            self._stderr = None

    def last(self) -> str:
        """The last line that was kept."""
        self._kept.seek(0)
        lines = self._kept.read(4096).decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")


def _fuse() -> Any:
    """libfuse's binding (RequestError where there is none)."""
    try:
        from mfusepy import FUSE
    except ImportError as error:
        raise RequestError(f"mounting needs the package mfusepy; {how_to_install('mount')}") from error
    except OSError as error:
        raise RequestError("mounting needs libfuse3 (Debian's package fuse3), and it is not there") from error
    return FUSE
