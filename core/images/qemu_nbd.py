"""An image of any format that QEMU knows, through a qemu-nbd of our own.

qemu-nbd is given a socket that listens already, in the way of systemd: so we connect at once and wait for nothing but
its first word, and when it cannot open the image it ends, and the connection with it. It serves this one connection,
and ends by itself when that ends, also where we were killed: then nobody could tell it to. But not before there was a
handshake, and until its last preparations are made it takes no notice of SIGTERM: so where we die, it is killed; where
it writes, it is told to end before, and has some seconds to do so. It is in a session of its own, so that a Ctrl-C in
the terminal is ours alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from pybackup.core.errors import PybackupError, SourceError
from pybackup.core.nbd.client import REQUEST_SIZE, NbdDevice
from pybackup.core.nbd.dirty_bitmap import SMALLEST_GRANULARITY, NbdDirtyBitmap
from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.core.system.child_death import dying_with_us
from pybackup.core.system.death_watch import DeathWatch
from pybackup.core.system.private_folder import private_folder

from .programs import MOST_SAID, file_options, find_program, qemu_failure, reason_of

END_SECONDS = 30.0
"""How long qemu-nbd may take to close an image; then it is told to, and at last killed."""
TOLD_SECONDS = 5.0
_LISTENING = 'export LISTEN_PID=$$; exec 3<&0 </dev/null "$@"'
"""The shell's part: the process id that will be qemu-nbd's, and the socket as descriptor 3 (sd_listen_fds(3)).

It comes as the standard input, for Debian's shell knows no numbers of two digits.
"""
_WAITING = f"read -r go <&1 && exec >/dev/null && {_LISTENING}"
"""The same, when a line came through the standard output: then its end is arranged for."""


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
    more: str = ""
    """Options for QEMU, with a comma before each."""
    bitmap: str = ""
    """The dirty bitmap of the image that is to be read too."""

    @property
    def writable(self) -> bool:
        """Whether it will change."""
        return self.access in (Access.WRITE, Access.FILL)

    @property
    def options(self) -> str:
        """In QEMU's words."""
        share = ",force-share=on" if self.force_share else ""
        return f"driver={self.image_format}{share},{file_options(self.path)}{self.more}"

    @property
    def arguments(self) -> list[str]:
        """Of qemu-nbd."""
        mode = ["--discard=unmap"] if self.writable else ["--read-only"]
        # One connection for the disk, and one for the bitmap.
        shared = [f"--bitmap={self.bitmap}", "--shared=2"] if self.bitmap else ["--shared=1"]
        return [*mode, f"--cache={_CACHE[self.access]}", *shared, "--image-opts", self.options]


class QemuNbd:
    """A qemu-nbd process. Made by start(). Fixed: the process. Changing: what it has said."""

    def __init__(self, process: asyncio.subprocess.Process, watch: DeathWatch | None) -> None:
        self._process, self._watch = process, watch
        self._said = bytearray()
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls, program: str, arguments: Sequence[str], listening: socket.socket, *, gently: bool = False
    ) -> QemuNbd:
        """Start it on a socket that listens (OSError). ``gently``: when we die, it may close the image first."""
        if not gently:
            command = dying_with_us("/bin/sh", "-c", _LISTENING, "sh", program, *arguments)
            return cls(await _start(command, listening, asyncio.subprocess.DEVNULL), None)
        watch = DeathWatch(listening.fileno())
        theirs, ours = os.pipe()
        try:
            process = await _start(["/bin/sh", "-c", _WAITING, "sh", program, *arguments], listening, theirs)
            watch.guard(process.pid)
            os.write(ours, b"\n")
        except BaseException:
            await watch.dismiss()
            raise
        finally:
            os.close(theirs)
            os.close(ours)
        return cls(process, watch)

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while part := await self._process.stderr.read(4096):
            self._said += part[: MOST_SAID - len(self._said)]

    @property
    def said(self) -> bytes:
        """What it said on its standard error; complete when it has ended."""
        return bytes(self._said)

    @property
    def number(self) -> int:
        """Of the process."""
        return self._process.pid

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
        if self._watch is not None:
            await self._watch.dismiss()
        return code

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


async def _start(command: Sequence[str], listening: socket.socket, output: int) -> asyncio.subprocess.Process:
    environment = {key: value for key, value in os.environ.items() if key != "LISTEN_FDNAMES"}
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=listening.fileno(),
        stdout=output,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**environment, "LISTEN_FDS": "1"},
    )


class QemuImage:
    """An image that is open. Made by open_image().

    Fixed: the device, the process behind it, and the image's dirty bitmap, if that was asked for.
    """

    def __init__(self, device: NbdDevice, process: QemuNbd, bitmap: NbdDirtyBitmap | None = None) -> None:
        self.device, self.bitmap = device, bitmap
        self._process = process

    @property
    def process(self) -> int:
        """The number of the process that reads the image."""
        return self._process.number

    async def close(self) -> int:
        """Take leave of qemu-nbd, and return its exit code when it has closed the image and ended."""
        try:
            if self.bitmap is not None:
                await self.bitmap.abort()
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
            process = await QemuNbd.start(program, image.arguments, listening, gently=image.writable)
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
    with private_folder() as folder:
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
    opened = QemuImage(device, process)
    if image.bitmap:
        try:
            opened.bitmap = await _bitmap_of(image, path, name, failure)
        except BaseException:
            await opened.close()
            raise
    return opened


async def _bitmap_of(image: ImageFile, path: str, name: str, failure: type[PybackupError]) -> NbdDirtyBitmap:
    async def prepare(_sock: socket.socket) -> None:
        """The connection ends with qemu-nbd, which is ours."""

    found = await NbdDirtyBitmap.connect(
        NbdAddress("", socket=path),
        image.bitmap,
        granularity=SMALLEST_GRANULARITY,
        prepare=prepare,
        data_at_once=REQUEST_SIZE,
    )
    if found is None:
        raise failure(f"qemu-nbd does not offer the bitmap {image.bitmap} of {name}")
    return found
