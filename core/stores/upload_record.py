"""Remembers on this machine which multipart upload is under way, for the run after one that was killed.

A store keeps the parts of an upload that nobody finished, and bills them, until somebody aborts it. Which uploads are
alive cannot be asked there. So each run keeps a small file, locked with flock(): a record without a lock is that of a
dead run, whose upload can be aborted; a lock that is held means that another run is writing the same object.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

from pybackup.core.errors import BusyError
from pybackup.core.system.locked_file import open_locked
from pybackup.core.system.state_folder import state_folder

LONGEST_ID = 4096


def records_folder() -> str:
    """Where the records lie."""
    return state_folder("uploads")


class UploadRecord:
    """The record of one object. Fixed: its path. Changing: the descriptor, -1 where nothing can be remembered.

    In a folder that cannot be written nothing is remembered; the store's own rule for incomplete uploads has to do.
    """

    def __init__(self, name: str, place: str, folder: str | None = None) -> None:
        """``name`` stands in messages; ``place`` tells the object from every other: server, bucket and key."""
        self._name = name
        self._folder = folder or records_folder()
        self._path = os.path.join(self._folder, hashlib.sha256(place.encode()).hexdigest()[:32])
        self._fd = -1

    def take(self) -> str | None:
        """Lock the record; the upload that a dead run left, or None. BusyError where another run is alive."""
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            self._fd = open_locked(self._path, 0o600)
            left = os.pread(self._fd, LONGEST_ID, 0).decode("utf-8", "replace")
        except BlockingIOError:
            raise BusyError(f"another run is writing {self._name}") from None
        except OSError:
            return None
        return left or None

    def remember(self, upload_id: str) -> None:
        """This upload is under way now."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, upload_id.encode(), 0)
                os.fsync(self._fd)

    def forget(self) -> None:
        """Nothing is under way any more: remove the record."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self.close()

    def close(self) -> None:
        """Give the lock back; what is remembered stays for the next run."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
