"""How QEMU gets at what we made for it: a temporary image, a socket to listen on.

A machine's monitor takes descriptors, so it does not matter as whom QEMU runs and what it sees of the filesystem; and
the images need no name that could be left behind. A storage daemon's monitor takes none: there QEMU gets paths in a
private folder, and the images lose their names as soon as they are open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from typing import Any

from pybackup.core.errors import Advice, RequestError, TargetError
from pybackup.core.system.marked_folder import MarkedFolder, remove_stale

from .monitor import Monitor
from .names import folder_name, run_of_folder

LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket."""
_SOCKET = "nbd"
_IMAGE = "image-"
PREFIXES = (_SOCKET, _IMAGE)
"""What the names of all that is in the folder begin with."""


def default_folder() -> str:
    """Where temporary images go: $TMPDIR or /var/tmp, for /tmp and $XDG_RUNTIME_DIR are often in memory."""
    return os.environ.get("TMPDIR") or "/var/tmp"


class Handover:
    """A private folder of one run. Fixed: folder and monitor. Changing: the descriptors of the images."""

    def __init__(self, monitor: Monitor, parent: str, run: str) -> None:
        """Create the folder in ``parent``; those of killed runs are removed (TargetError, RequestError)."""
        self._monitor, self._prefix = monitor, folder_name(run)
        self.parent = parent = os.path.abspath(parent)
        self.socket = os.path.join(folder_of(parent, run), _SOCKET)
        self._images: list[int] = []
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET:
            raise RequestError(f"the path {parent} is too long for a socket", advice=Advice.FLEECE_ELSEWHERE)
        self._by_descriptor = monitor.knows("add-fd") and monitor.knows("getfd")
        try:
            _remove_stale_folders(parent)
            self._folder = MarkedFolder(folder_of(parent, run), PREFIXES)
            if not self._by_descriptor and os.geteuid() == 0:
                self._give_folder(monitor.user)
        except OSError as error:
            raise TargetError(f"cannot make a folder for the temporary images in {parent}: {error.strerror}") from error

    def _give_folder(self, user: tuple[int, int]) -> None:
        try:
            os.chown(self._folder.path, *user)
        except BaseException:
            self._folder.remove()
            raise

    # -- images --

    async def image(self, name: str) -> str:
        """Make an empty file; the name by which QEMU opens it (TargetError, SourceError)."""
        try:
            fd, path = tempfile.mkstemp(prefix=_IMAGE, dir=self._folder.path)
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

    def drop_name(self, filename: str) -> None:
        """QEMU has opened an image, which needs no name any more."""
        if not self._by_descriptor:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(filename)

    def allocated(self) -> int:
        """Bytes that all images take on their filesystem."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in self._images)

    def free(self) -> int:
        """Bytes that are left on the filesystem of the images."""
        info = os.fstatvfs(self._images[0]) if self._images else os.statvfs(self._folder.path)
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
        self._folder.remove()

    def close(self) -> None:
        """Give everything back; a second time nothing happens."""
        self.remove_folder()
        while self._images:
            fd = self._images.pop()
            # QEMU may keep the descriptor of a machine that is paused; it shall not keep the room.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            os.close(fd)


def folder_of(parent: str, run: str) -> str:
    """The path of a run's folder."""
    return os.path.join(os.path.abspath(parent), folder_name(run))


def _remove_stale_folders(parent: str) -> None:
    for name in os.listdir(parent):
        if run_of_folder(name) is not None:
            remove_stale(os.path.join(parent, name), PREFIXES)
