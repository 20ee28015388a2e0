"""How a server passes the clusters of a backup on to the process that writes the archive: a stream of messages.

Each message is a header (:data:`MESSAGE`) and, for data, samples and the end, as many bytes as it says. Little-endian.
Both ends are the same version of pybackup on the same machine; the receiver checks what it is told all the same.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .errors import FormatError

MESSAGE = struct.Struct("<4sBBxxIIQ")
"""magic, kind, drive id, first cluster, number of clusters, bytes that follow"""
MAGIC = b"PBCS"
DATA, ZEROS, END, UNCHANGED, SAMPLE = 1, 2, 3, 4, 5
"""Clusters; zero clusters; the end, with what is told about the backup; clusters that are as the parent of the delta
has them; and clusters that the server believes to be so, and wants to be compared (see ANSWER)."""
MAX_PAYLOAD = 64 << 20
MAX_REASON = 4096
"""Bytes that tell why the receiver gave up."""
ACKNOWLEDGEMENT = b"\x06"
"""What the receiver sends back when the archive is complete, durable and visible."""

PROGRESS = struct.Struct("<cQQ")
"""PROGRESS_MARK, bytes of data that the archive holds, bytes of the archive; a reason never begins with such a mark."""
PROGRESS_MARK = b"\x01"
ANSWER = struct.Struct("<c?")
"""ANSWER_MARK, whether the sample that was sent last differs from the parent; each is answered before the next."""
ANSWER_MARK = b"\x02"
IDENTITY = struct.Struct("<c16s")
"""IDENTITY_MARK, digest of the archive's directory: before the acknowledgement, to a server that says it takes it."""
IDENTITY_MARK = b"\x05"
TAKES_IDENTITY = "takes_identity"
"""The key by which a server says so, true, among what it tells at the end; it is not for the archive."""
_REPLIES = {PROGRESS_MARK: PROGRESS, ANSWER_MARK: ANSWER, IDENTITY_MARK: IDENTITY}


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
    if magic != MAGIC or not DATA <= message.kind <= SAMPLE or message.length > MAX_PAYLOAD:
        raise FormatError("the server's stream of clusters is damaged")
    return message


class Replies:
    """What the receiver says: how far it is and whether samples differ, again and again, then that all is well, or why
    it is not.

    Changing, by feed(): the bytes of data that the archive holds so far, and those of the archive itself; the last
    answer; the digest of the archive's directory; what was received and is none of these.
    """

    def __init__(self) -> None:
        self.stored = self.written = 0
        self.answer: bool | None = None
        self.digest: bytes | None = None
        self._received = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        self._received += data
        while (layout := self._layout) is not None and len(self._received) >= layout.size:
            mark, *fields = layout.unpack_from(self._received)
            del self._received[: layout.size]
            if mark == PROGRESS_MARK:
                self.stored, self.written = fields
            elif mark == ANSWER_MARK:
                (self.answer,) = fields
            else:
                (self.digest,) = fields

    @property
    def _layout(self) -> struct.Struct | None:
        return _REPLIES.get(bytes(self._received[:1]))

    @property
    def last(self) -> bytes:
        """The acknowledgement, or the reason, as far as it has come."""
        return b"" if self._layout is not None else bytes(self._received[:MAX_REASON])
