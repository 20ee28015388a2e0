"""Short reads that could not be answered at once, asked for again during the next fraction of a millisecond.

A read with RWF_NOWAIT that misses the page cache has started the disk all the same (the kernel's readahead), so it
often succeeds a moment later, while a thread that waits for it costs 60 to 80 us of Python. Random reads of a file that
is not in the cache, 4 KiB, 16 in flight: 13k a second with threads only, 46k so; qemu-nbd 37k. The event loop stays
free: it looks once a turn, and a read that takes longer goes to a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pybackup.core.device import Buffer
from pybackup.formats.nbd_transmission import Request

PATIENCE = 0.0004
"""Seconds to ask again: a fast disk answers in 0.1 to 0.3 ms."""
PROBE_EVERY = 64
"""Reads after which a device that never answered later is tried again."""


class Missed(NamedTuple):
    """A read, and the time (seconds) until which it is asked for again."""

    request: Request
    until: float


class MissedReads:
    """The missed reads of one connection.

    Fixed: how to read, and the clock. Changing: the reads, and the patience (seconds): it shrinks with every read that
    had to go to a thread, and is whole again after one that had not.
    """

    def __init__(self, read_now: Callable[[int, int], Buffer | None], clock: Callable[[], float]) -> None:
        """``read_now``: the device's. ``clock``: gives seconds."""
        self._read_now, self._clock = read_now, clock
        self._reads: list[Missed] = []
        self._patience = PATIENCE
        self._given_up = 0

    def __len__(self) -> int:
        return len(self._reads)

    def add(self, request: Request) -> bool:
        """Take a read that missed just now; False when there is no use in asking again."""
        if self._patience < PATIENCE / 8:
            self._given_up += 1
            if self._given_up % PROBE_EVERY:
                return False
            self._patience = PATIENCE
        self._reads.append(Missed(request, self._clock() + self._patience))
        return True

    def clear(self) -> None:
        """Forget all reads."""
        self._reads.clear()

    def ask_again(self) -> Iterator[tuple[Request, Buffer | Exception | None]]:
        """Each read that has come to an end, with its data, its failure, or None: it is work for a thread."""
        reads, self._reads = self._reads, []
        now = self._clock()
        for missed in reads:
            outcome = self._outcome(missed.request)
            if outcome is not None:
                self._patience = PATIENCE
            elif now < missed.until:
                self._reads.append(missed)
                continue
            else:
                self._patience /= 2
            yield missed.request, outcome

    def _outcome(self, request: Request) -> Buffer | Exception | None:
        try:
            return self._read_now(request[3], request[4])
        except Exception as failure:
            return failure
