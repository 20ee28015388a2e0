"""How much QEMU can send over a Unix socket while nobody reads.

It is for the sender to say how much may wait, and QEMU, until 10.0, leaves it as it is for every socket of the system.
A receiver cannot change that; so we measure what a socket takes, and do not ask for more.
"""

from __future__ import annotations

import socket

from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.nbd.client import REQUEST_SIZE
from pybackup.formats import nbd_wire as wire

SMALLEST = 4096
_HEADERS = bytes(wire.CHUNK.size + wire.CHUNK_OFFSET.size)


def data_at_once() -> int:
    """Bytes of data, in one reply, that a new Unix socket takes; clusters, where it takes any (OSError)."""
    sizes = [*range(REQUEST_SIZE, 0, -CLUSTER_SIZE), CLUSTER_SIZE // 2, CLUSTER_SIZE // 4, SMALLEST]
    return next((size for size in sizes if _fits(size)), SMALLEST)


def _fits(size: int) -> bool:
    """Whether a socket takes such a reply as a whole, given to it as QEMU does it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        ours.setblocking(False)
        return ours.sendmsg([_HEADERS, bytes(size)]) == len(_HEADERS) + size
