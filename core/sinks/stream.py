"""A pipe, a FIFO, a terminal, /dev/stdout: bytes that are gone once they are written."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Sequence

from pybackup.core.device import Buffer
from pybackup.core.errors import TargetError
from pybackup.core.places.kinds import LocalPath, Place, StandardStream

from .target_failure import target_failure

NO_READER_PERIOD = 0.05
"""Seconds between two looks whether somebody reads a FIFO."""

_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


StreamPlace = LocalPath | StandardStream
"""What may be a stream: the standard output, a FIFO, a device."""


def own_descriptor(place: Place) -> int | None:
    """The descriptor of ours that is named: 1 for the standard output and /dev/stdout, 3 for /dev/fd/3; else None."""
    if isinstance(place, StandardStream):
        return 1
    if not isinstance(place, LocalPath):
        return None
    folder, name = os.path.split(os.path.abspath(place.path))
    folder = os.path.realpath(folder)
    if folder == f"/proc/{os.getpid()}/fd" and name.isdecimal():
        return int(name)
    return _STANDARD.get(os.path.join(folder, name))


def is_stream(path: LocalPath) -> bool:
    """Whether what is written to a path goes to a stream; else it is a file, or will be one."""
    if own_descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path.path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


async def pass_on(fd: int, buffers: Sequence[Buffer]) -> None:
    """Write all bytes of all buffers to a descriptor that does not block; waits while the reader is slow (OSError)."""
    for buffer in buffers:
        view = memoryview(buffer)
        while len(view):
            try:
                view = view[os.write(fd, view[: 1 << 20]) :]
            except BlockingIOError:
                await _writable(fd)


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fd, wake)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


class StreamSink:
    """Fixed: the name, what it names. Changing: the descriptor, which begin() opens and the end closes.

    The descriptor is made non-blocking where it can be, so that a slow reader never blocks a thread that cancelling
    would have to wait for.
    """

    def __init__(self, place: StreamPlace) -> None:
        """``place``: the standard output, or a path for which is_stream() is true."""
        self._own = own_descriptor(place)
        self.name = "the standard output" if self._own == 1 else str(place)
        self._path = place.text
        self._fd = -1
        self._was_blocking = True

    async def begin(self) -> None:
        """Open it; a FIFO once somebody reads it. A terminal is refused: an archive is not for reading."""
        try:
            self._fd = await self._open()
            if os.isatty(self._fd):
                raise TargetError("an archive is not written to a terminal; redirect the standard output")
            self._was_blocking = os.get_blocking(self._fd)
            if not self._is_regular:
                os.set_blocking(self._fd, False)
        except OSError as error:
            raise target_failure(self.name, error, "open") from error

    async def _open(self) -> int:
        if self._own is not None:
            return os.dup(self._own)
        while True:
            self._refuse_planted()
            try:
                return os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError as error:
                if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(self._path).st_mode):
                    raise
            await asyncio.sleep(NO_READER_PERIOD)

    def _refuse_planted(self) -> None:
        """A FIFO that another user put where everybody can (TargetError, OSError): its maker would read the disk."""
        found = os.stat(self._path)
        folder = os.stat(os.path.dirname(os.path.realpath(self._path)))
        others = found.st_uid not in (os.geteuid(), folder.st_uid)
        if stat.S_ISFIFO(found.st_mode) and folder.st_mode & stat.S_IWOTH and others:
            raise TargetError(
                f"cannot open {self._path}: it is a FIFO that another user has made in a folder where everybody can"
            )

    @property
    def _is_regular(self) -> bool:
        return stat.S_ISREG(os.fstat(self._fd).st_mode)

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Pass on all bytes; waits while the reader is slow."""
        try:
            await pass_on(self._fd, buffers)
        except OSError as error:
            raise target_failure(self.name, error, "write") from error

    async def commit(self) -> None:
        """Close the stream; a failure now is a failure."""
        try:
            if self._is_regular:
                os.fsync(self._fd)
            self._close()
        except OSError as error:
            raise target_failure(self.name, error, "finish") from error

    async def abort(self) -> None:
        """Close the stream; what was written is written."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            # The flag belongs to the open file, which others (a shell's tee, the terminal) may share with us.
            os.set_blocking(fd, self._was_blocking)
        finally:
            os.close(fd)
