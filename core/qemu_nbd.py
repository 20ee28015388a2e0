"""An image of any format that QEMU knows, through a qemu-nbd of our own.

qemu-nbd is given a socket that listens already, in the way of systemd: so we connect at once and wait for nothing but
its first word, and when it cannot open the image it ends, and the connection with it. It serves this one connection,
and ends by itself when that ends, also where we were killed: then nobody could tell it to. For the moment before there
is a connection, the kernel is asked to end it with us (setpriv, of util-linux, where it is installed). It is in a
session of its own, so that a Ctrl-C in the terminal is ours alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from .devices.nbd import NbdDevice
from .errors import PybackupError, SourceError
from .nbd_uri import NbdAddress
from .qemu_programs import MOST_SAID, file_options, find_program, qemu_failure, reason_of

END_SECONDS = 30.0
"""How long qemu-nbd may take to close an image; then it is told to, and at last killed."""
TOLD_SECONDS = 5.0
_LISTENING = 'export LISTEN_PID=$$; exec 3<&0 </dev/null "$@"'
"""The shell's part: the process id that will be qemu-nbd's, and the socket as descriptor 3 (sd_listen_fds(3)).

It comes as the standard input, for Debian's shell knows no numbers of two digits.
"""


class Access(Enum):
    """What is done with an image."""

    READ = auto()
    READ_ONCE = auto()
    """Past the page cache, where the filesystem can do that."""
    WRITE = auto()
    """Durable after a flush."""
    FILL = auto()
    """Durable only for who syncs the file later."""


_CACHE = {Access.READ: "writeback", Access.READ_ONCE: "none", Access.WRITE: "writeback", Access.FILL: "unsafe"}
"""QEMU's cache modes."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Which image to open, and for what."""

    path: str
    image_format: str
    access: Access = Access.READ
    force_share: bool = False

    @property
    def writable(self) -> bool:
        """Whether it will change."""
        return self.access in (Access.WRITE, Access.FILL)

    @property
    def options(self) -> str:
        """In QEMU's words."""
        share = ",force-share=on" if self.force_share else ""
        return f"driver={self.image_format}{share},{file_options(self.path)}"

    @property
    def arguments(self) -> list[str]:
        """Of qemu-nbd."""
        mode = ["--discard=unmap"] if self.writable else ["--read-only"]
        return [*mode, f"--cache={_CACHE[self.access]}", "--shared=1", "--image-opts", self.options]


class QemuNbd:
    """A qemu-nbd process. Made by start(). Fixed: the process. Changing: what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said = bytearray()
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, program: str, arguments: Sequence[str], listening: socket.socket) -> QemuNbd:
        """Start it on a socket that listens (OSError)."""
        environment = {key: value for key, value in os.environ.items() if key != "LISTEN_FDNAMES"}
        setpriv = shutil.which("setpriv")
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", _LISTENING, "sh"),
            *((setpriv, "--pdeathsig", "TERM") if setpriv else ()),
            *(program, *arguments),
            stdin=listening.fileno(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**environment, "LISTEN_FDS": "1"},
        )
        return cls(process)

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while part := await self._process.stderr.read(4096):
            self._said += part[: MOST_SAID - len(self._said)]

    @property
    def said(self) -> bytes:
        """What it said on its standard error; complete when it has ended."""
        return bytes(self._said)

    async def end(self, patience: float = END_SECONDS) -> int:
        """Wait until it has ended, make it end when that takes more than ``patience`` seconds; its exit code."""
        try:
            for seconds, number in ((patience, signal.SIGTERM), (TOLD_SECONDS, signal.SIGKILL)):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        return await self._ended()
                self._send(number)
            return await self._ended()
        except asyncio.CancelledError:
            self._send(signal.SIGKILL)
            await self._ended()
            raise

    async def _ended(self) -> int:
        code = await self._process.wait()
        await self._listener
        return code

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


class QemuImage:
    """An image that is open. Made by open_image(). Fixed: the device, and the process behind it."""

    def __init__(self, device: NbdDevice, process: QemuNbd) -> None:
        self.device = device
        self._process = process

    async def close(self) -> int:
        """Take leave of qemu-nbd, and return its exit code when it has closed the image and ended."""
        try:
            await self.device.close()
        finally:
            code = await self._process.end()
        return code


async def open_image(
    image: ImageFile, *, name: str | None = None, failure: type[PybackupError] = SourceError
) -> QemuImage:
    """Open an image; ``name`` is what the user called it. Raises ``failure`` with QEMU's reason, or BusyError."""
    name = name or image.path
    program = find_program("qemu-nbd", f"{name}: the format {image.image_format}", failure)
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            place = _listen(listening)
        except OSError as error:
            raise failure(f"cannot make a socket in {tempfile.gettempdir()}: {error.strerror or error}") from error
        try:
            process = await QemuNbd.start(program, image.arguments, listening)
            # Ours is closed, so that nobody listens any more when qemu-nbd has ended.
            listening.close()
            return await _connect(image, process, f"/proc/self/fd/{place}", name, failure)
        except OSError as error:
            raise failure(f"cannot start {program}: {error.strerror or error}") from error
        finally:
            os.close(place)


def _listen(listening: socket.socket) -> int:
    """Listen on a socket without a name: the descriptor to find it by (OSError).

    It had a name for a moment, in a folder that was ours alone; so nothing is left of it, whatever may happen.
    """
    with tempfile.TemporaryDirectory(prefix="pybackup-") as folder:
        path = os.path.join(folder, "nbd.sock")
        listening.bind(path)
        listening.listen(1)
        return os.open(path, os.O_PATH | os.O_CLOEXEC)


async def _connect(image: ImageFile, process: QemuNbd, path: str, name: str, failure: type[PybackupError]) -> QemuImage:
    def lost(what: str) -> PybackupError:
        return failure(what.replace("the NBD server", "qemu-nbd"))

    try:
        device = await NbdDevice.connect(
            NbdAddress("", socket=path), writable=image.writable, connections=1, name=name, failure=lost
        )
    except PybackupError as error:
        await process.end(TOLD_SECONDS)
        reason = reason_of(process.said, without=f"Failed to blk_new_open '{image.options}': ")
        if not reason:
            raise
        raise qemu_failure(f"cannot open {name}", reason, failure) from error
    except BaseException:
        await process.end(0)
        raise
    return QemuImage(device, process)
