"""How a server passes the clusters of a backup on to the process that writes the archive: a stream of messages.

Each message is a header (:data:`MESSAGE`) and, for data and the end, as many bytes as it says. Little-endian. Both ends
are the same version of pybackup on the same machine; the receiver checks what it is told all the same.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .errors import FormatError

MESSAGE = struct.Struct("<4sBBxxIIQ")
"""magic, kind, drive id, first cluster, number of clusters, bytes that follow"""
MAGIC = b"PBCS"
DATA, ZEROS, END = 1, 2, 3
MAX_PAYLOAD = 64 << 20
MAX_REASON = 4096
"""Bytes that tell why the receiver gave up."""
ACKNOWLEDGEMENT = b"\x06"
"""What the receiver sends back when the archive is complete, durable and visible."""

PROGRESS = struct.Struct("<cQQ")
"""PROGRESS_MARK, bytes of data that the archive holds, bytes of the archive; a reason never begins with that mark."""
PROGRESS_MARK = b"\x01"


class Message(NamedTuple):
    """A message's header. ``length`` in bytes, ``first`` and ``clusters`` in clusters."""

    kind: int
    drive_id: int
    first: int
    clusters: int
    length: int

    def encode(self) -> bytes:
        """The bytes of the header."""
        return MESSAGE.pack(MAGIC, *self)


def decode(header: bytes) -> Message:
    """Read a header (FormatError)."""
    magic, *fields = MESSAGE.unpack(header)
    message = Message(*fields)
    if magic != MAGIC or message.kind not in (DATA, ZEROS, END) or message.length > MAX_PAYLOAD:
        raise FormatError("the server's stream of clusters is damaged")
    return message


class Replies:
    """What the receiver says: how far it is (PROGRESS), again and again, then that all is well, or why it is not.

    Changing, by feed(): the bytes of data that the archive holds so far, and those of the archive itself; what was
    received and is no progress.
    """

    def __init__(self) -> None:
        self.stored = self.written = 0
        self._received = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        self._received += data
        while self._received[:1] == PROGRESS_MARK and len(self._received) >= PROGRESS.size:
            _, self.stored, self.written = PROGRESS.unpack_from(self._received)
            del self._received[: PROGRESS.size]

    @property
    def last(self) -> bytes:
        """The acknowledgement, or the reason, as far as it has come."""
        return b"" if self._received[:1] == PROGRESS_MARK else bytes(self._received[:MAX_REASON])
