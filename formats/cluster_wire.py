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
