"""How QEMU gets at what we made for it: a temporary image, a socket to listen on.

A machine's monitor takes descriptors, so it does not matter as whom QEMU runs and what it sees of the filesystem; and
the images need no name that could be left behind. A storage daemon's monitor takes none: there QEMU gets paths in a
private folder, and the images lose their names as soon as they are open.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from typing import Any

from pybackup.core.errors import RequestError, TargetError

from .leftovers import is_alive, is_run
from .monitor import Monitor

LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket."""


def default_folder() -> str:
    """Where temporary images go: $TMPDIR or /var/tmp, for /tmp and $XDG_RUNTIME_DIR are often in memory."""
    return os.environ.get("TMPDIR") or "/var/tmp"


class Handover:
    """A private folder of one run. Fixed: folder and monitor. Changing: the descriptors of the images."""

    def __init__(self, monitor: Monitor, parent: str, run: str) -> None:
        """Create the folder in ``parent``; those of killed runs are removed (TargetError, RequestError)."""
        self._monitor, self._prefix = monitor, f"pybackup-{run}"
        self.parent = parent = os.path.abspath(parent)
        self._folder = os.path.join(parent, self._prefix)
        self.socket = os.path.join(self._folder, "nbd.sock")
        self._images: list[int] = []
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET:
            raise RequestError(f"the path {parent} is too long for a socket; choose another --fleece")
        self._by_descriptor = monitor.knows("add-fd") and monitor.knows("getfd")
        try:
            _remove_stale_folders(parent)
            os.mkdir(self._folder, 0o700)
            if not self._by_descriptor and os.geteuid() == 0:
                os.chown(self._folder, *monitor.user)
        except OSError as error:
            raise TargetError(f"cannot make a folder for the temporary images in {parent}: {error.strerror}") from error

    # -- images --

    async def image(self, name: str) -> str:
        """Make an empty file; the name by which QEMU opens it (TargetError, SourceError)."""
        try:
            fd, path = tempfile.mkstemp(dir=self._folder)
            self._images.append(fd)
            if self._by_descriptor:
                os.unlink(path)
            elif os.geteuid() == 0:
                os.chown(path, *self._monitor.user)
        except OSError as error:
            raise TargetError(f"cannot make a temporary image in {self.parent}: {error.strerror}") from error
        if not self._by_descriptor:
            return path
        self._monitor.send_descriptor(fd)
        answer = await self._monitor.execute("add-fd", {"opaque": name})
        return f"/dev/fdset/{answer['fdset-id']}"

    def is_open(self, filename: str) -> None:
        """QEMU has opened an image, which needs no name any more."""
        if not self._by_descriptor:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(filename)

    def allocated(self) -> int:
        """Bytes that all images take on their filesystem."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in self._images)

    def free(self) -> int:
        """Bytes that are left on the filesystem of the images."""
        info = os.fstatvfs(self._images[0]) if self._images else os.statvfs(self._folder)
        return info.f_bavail * info.f_frsize

    # -- the socket --

    async def listen(self) -> dict[str, Any]:
        """Where QEMU's NBD server shall listen: a SocketAddressLegacy (TargetError, SourceError)."""
        if not self._by_descriptor:
            return {"type": "unix", "data": {"path": self.socket}}
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.bind(self.socket)
                sock.listen(16)
            except OSError as error:
                raise TargetError(f"cannot listen at {self.socket}: {error.strerror}") from error
            self._monitor.send_descriptor(sock.fileno())
            await self._monitor.execute("getfd", {"fdname": self._prefix})
        return {"type": "fd", "data": {"str": self._prefix}}

    def remove_folder(self) -> None:
        """All connections are made and all images open: no name is needed any more."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Give everything back; a second time nothing happens."""
        self.remove_folder()
        while self._images:
            fd = self._images.pop()
            # QEMU may keep the descriptor of a machine that is paused; it shall not keep the room.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            os.close(fd)


def _remove_stale_folders(parent: str) -> None:
    for name in os.listdir(parent):
        run, path = is_run(name), os.path.join(parent, name)
        if run is not None and not is_alive(run) and os.geteuid() in (0, os.lstat(path).st_uid):
            shutil.rmtree(path, ignore_errors=True)
