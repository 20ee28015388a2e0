"""The lock of a folder of archives: two prunes never work in the same one. A dead process holds none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pybackup.core.archive.listing import OWN
from pybackup.core.errors import BusyError, TargetError
from pybackup.core.system.locked_file import NoLocksError, lock, open_locked

LOCK_FILE = f"{OWN}-lock"
"""Where a folder itself cannot be locked, as over NFS."""


@contextlib.contextmanager
def place_lock(path: str) -> Iterator[int]:
    """The open folder, locked until the body ends (BusyError, TargetError)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError(f"cannot open {path}: {error.strerror}") from error
    try:
        with _locked(fd, path):
            yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked(fd: int, path: str) -> Iterator[None]:
    try:
        lock(fd)
    except BlockingIOError:
        raise _busy(path) from None
    except OSError:
        with _lock_file(path):
            yield
        return
    yield


@contextlib.contextmanager
def _lock_file(path: str) -> Iterator[None]:
    name = os.path.join(path, LOCK_FILE)
    try:
        fd = open_locked(name, 0o600)
    except BlockingIOError:
        raise _busy(path) from None
    except NoLocksError as error:
        raise TargetError(
            f"nothing is removed from {path}: its filesystem has no locks ({error.strerror}), by which a backup keeps"
            " the archives that it builds on"
        ) from error
    except OSError as error:
        raise TargetError(f"cannot lock {path}: {error.strerror}") from error
    try:
        yield
    finally:
        # While it is locked: who waits for it sees that the file has gone, and makes another.
        with contextlib.suppress(OSError):
            os.unlink(name)
        os.close(fd)


def _busy(path: str) -> BusyError:
    return BusyError(f"another prune is at work in {path}")
