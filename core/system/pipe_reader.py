"""Reading from a pipe in a thread that can be told to stop."""

from __future__ import annotations

import errno
import os
import select


class PipeReader:
    """Reads a pipe, whose next byte may never come, until told to stop. Fixed: the descriptors."""

    def __init__(self, fd: int) -> None:
        """``fd`` stays open when the reader is closed."""
        self._fd = fd
        self._stopped, self._stop = os.pipe()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._stopped, select.POLLIN)

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, none at the end; OSError (ECANCELED) after stop()."""
        ready = [fd for fd, _ in self._poll.poll()]
        if self._stopped in ready:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        return os.read(self._fd, size)

    def stop(self) -> None:
        """Make read() fail, from any thread, also one that waits already."""
        os.write(self._stop, b"!")

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._stopped)
        os.close(self._stop)
