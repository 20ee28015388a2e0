"""The private folder of one run: QEMU's socket, its scratch images, and the mark that tells that the run lives."""

from __future__ import annotations

import contextlib
import os

from pybackup.core.errors import Advice, RequestError, SourceError, TargetError
from pybackup.core.qemu.fleecing import RESERVE, FleecingOptions
from pybackup.core.qemu.handover import LONGEST_SOCKET
from pybackup.core.qemu.names import folder_name
from pybackup.core.system.marked_folder import MarkedFolder

from .pulled_job import PREFIXES, REQUEST, SCRATCH, SOCKET, remove_stale_folders


class RunFolder:
    """Fixed: the path, what is allowed. Changing: the folder, which is there between make() and remove()."""

    def __init__(self, options: FleecingOptions, run: str) -> None:
        """RequestError where the path is too long for a socket."""
        self.parent = os.path.abspath(options.folder)
        self.path = os.path.join(self.parent, folder_name(run))
        self.socket = os.path.join(self.path, SOCKET)
        self._max_size = options.max_size
        self._folder: MarkedFolder | None = None
        self._images = 0
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET:
            raise RequestError(f"the path {self.parent} is too long for a socket", advice=Advice.FLEECE_ELSEWHERE)

    def make(self, owner: tuple[int, int] | None) -> int:
        """Make it, for a QEMU of this user and group; the descriptor of its mark (TargetError, SourceError)."""
        try:
            remove_stale_folders(self.parent)
            self._folder = MarkedFolder(self.path, PREFIXES)
            if owner is not None and owner[0] != os.geteuid():
                self._give(owner)
        except OSError as error:
            raise TargetError(
                f"cannot make a folder for the scratch images in {self.parent}: {error.strerror}"
            ) from error
        return self._folder.fileno()

    def _give(self, owner: tuple[int, int]) -> None:
        """QEMU makes its socket in it."""
        if os.geteuid() != 0:
            raise SourceError(
                f"the domain's QEMU runs as user {owner[0]}, and only root can make a folder that it may write to: run"
                " pybackup as root"
            )
        os.chown(self.path, *owner)

    def scratch(self, number: int) -> str:
        """The path of a scratch image, which libvirt makes."""
        self._images = max(self._images, number + 1)
        return os.path.join(self.path, f"{SCRATCH}{number}")

    def write_request(self, text: str) -> str:
        """The path of a file with a request to libvirt (TargetError)."""
        path = os.path.join(self.path, f"{REQUEST}checkpoint")
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise TargetError(f"cannot write to {self.path}: {error.strerror}") from error
        return path

    def check_room(self) -> None:
        """TargetError where the scratch images are too large, or there is too little room beside them."""
        taken = self._allocated()
        if self._max_size is not None and taken > self._max_size:
            raise TargetError(
                f"the scratch images have grown to {taken:,} bytes of what the guest overwrote",
                advice=Advice.FLEECE_MORE,
                about=f"{self._max_size:,}",
            )
        info = os.statvfs(self.parent)
        if (free := info.f_bavail * info.f_frsize) < RESERVE:
            raise TargetError(
                f"only {free:,} bytes are free in {self.parent}, and {RESERVE:,} must stay free beside the scratch"
                " images, lest a guest's write fails",
                advice=Advice.FLEECE_ELSEWHERE,
            )

    def _allocated(self) -> int:
        """Bytes that all scratch images take on their filesystem."""
        taken = 0
        for number in range(self._images):
            with contextlib.suppress(OSError):
                taken += os.stat(self.scratch(number)).st_blocks * 512
        return taken

    def remove_scratch(self) -> None:
        """The images go; the folder itself stays until the end, for it tells that this run lives."""
        for number in range(self._images):
            with contextlib.suppress(OSError):
                os.unlink(self.scratch(number))

    def remove(self) -> bool:
        """Remove all of it; whether it was there. A second time nothing happens."""
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.remove()
        return folder is not None
