"""What is still to be sent on a socket, without a thread and without copies.

asyncio's transports copy what the socket does not take at once, and their writelines() joins before it sends
(until Python 3.12); here sendmsg(2) takes the buffers as they are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from pybackup.core.device import Buffer

IOV_MAX = 1024
"""Buffers that Linux takes in one sendmsg(2)."""
FULL_BYTES = 4 * 1024 * 1024
FULL_BUFFERS = 4096
"""A stuck queue with so many bytes or buffers is full: who fills it should wait. At 10 Gbit/s 4 MiB are 3 ms."""


class SendQueue:
    """Buffers on their way to a non-blocking socket, in order.

    Append to ``pending`` and call flush(); nothing may change a buffer until it is sent. Fixed: the socket and whom
    to tell. Changing, in the event loop only: the buffers, how much of the first was sent, and whether they are stuck.
    """

    def __init__(
        self, sock: socket.socket, on_progress: Callable[[], None], on_error: Callable[[OSError], None]
    ) -> None:
        """``on_progress``: called when some of a stuck queue was sent. ``on_error``: called once, the socket is dead"""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_progress, self._on_error = on_progress, on_error
        self.pending: list[Buffer] = []
        self._sent_of_first = 0
        self.is_stuck = False
        """Whether the socket takes no more for now; then the loop watches it."""

    @property
    def stuck_bytes(self) -> int:
        """Bytes of memory that are held because the socket takes no more for now: of a buffer all or nothing."""
        return self._sent_of_first + sum(map(len, self.pending)) if self.is_stuck else 0

    @property
    def is_full(self) -> bool:
        """Nothing should be added for now."""
        return self.is_stuck and (len(self.pending) >= FULL_BUFFERS or self.stuck_bytes >= FULL_BYTES)

    def flush(self) -> None:
        """Send what the socket takes at once; the rest follows by itself."""
        if self.pending and not self.is_stuck and self._send() and self.pending:
            self.is_stuck = True
            self._loop.add_writer(self._sock, self._on_writable)

    def close(self) -> None:
        """Forget what is not sent, and stop to watch the socket, which stays open."""
        self.pending.clear()
        self._sent_of_first = 0
        self._unwatch()

    def _send(self) -> bool:
        """Send once: what the socket does not take now it will not take a moment later. False when it is dead."""
        try:
            self._drop(self._sock.sendmsg(self.pending[:IOV_MAX]))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.close()
            self._on_error(error)
            return False
        return True

    def _drop(self, count: int) -> None:
        """Drop the first ``count`` bytes."""
        for index, buffer in enumerate(self.pending):
            count -= len(buffer)
            if count < 0:
                self._sent_of_first = (0 if index else self._sent_of_first) + len(buffer) + count
                self.pending[: index + 1] = [memoryview(buffer)[count:]]
                return
        self.pending.clear()
        self._sent_of_first = 0

    def _on_writable(self) -> None:
        if not self._send():
            return
        if not self.pending:
            self._unwatch()
        self._on_progress()

    def _unwatch(self) -> None:
        if self.is_stuck:
            self.is_stuck = False
            self._loop.remove_writer(self._sock)
