"""Replies of NBD's transmission phase: what a server sends.

Reads are answered in the style that was negotiated. Everything else may be answered by a simple reply in either
style, and is, when it went well: it is the shortest. Specified in ``doc/proto.md`` of the nbd repository.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import Protocol

from pybackup.formats import nbd_wire as wire
from pybackup.formats.nbd_handshake import CONTEXT_ID

MAX_DESCRIPTORS = 65536
"""Extents in one answer to BLOCK_STATUS; a client asks again for what is left."""

_DATA_CHUNK = struct.Struct(">IHHQIQ")
"""CHUNK and CHUNK_OFFSET at once"""

_ERRNO_TO_NBD = {
    errno.EPERM: wire.NBD_EPERM,
    errno.EACCES: wire.NBD_EPERM,
    errno.EROFS: wire.NBD_EPERM,
    errno.ENOMEM: wire.NBD_ENOMEM,
    errno.EINVAL: wire.NBD_EINVAL,
    errno.ENOSPC: wire.NBD_ENOSPC,
    errno.EDQUOT: wire.NBD_ENOSPC,
    errno.EFBIG: wire.NBD_ENOSPC,
    errno.ESHUTDOWN: wire.NBD_ESHUTDOWN,
}


def nbd_error(number: int | None, command_flags: int = 0) -> int:
    """The NBD errno for an errno of this system: one of the specification's list, never 0.

    ENOTSUP is only for a FAST_ZERO that would not be fast; elsewhere it means EINVAL.
    """
    if number in (errno.EOPNOTSUPP, errno.ENOTSUP):
        return wire.NBD_ENOTSUP if command_flags & wire.CMD_FLAG_FAST_ZERO else wire.NBD_EINVAL
    return _ERRNO_TO_NBD.get(number or 0, wire.NBD_EIO)


def done(cookie: int) -> bytes:
    """The reply to a request other than a read or a block status that went well."""
    return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, cookie)


def block_status(cookie: int, extents: Iterable[tuple[int, int]], one: bool) -> bytes:
    """The reply to BLOCK_STATUS: ``extents`` are (length in bytes, status flags), at least one.

    Neighbours of the same status become one; ``one`` leaves out all but the first.
    """
    merged: list[list[int]] = []
    for length, status in extents:
        if merged and merged[-1][1] == status:
            merged[-1][0] += length
        elif merged and (one or len(merged) == MAX_DESCRIPTORS):
            break
        else:
            merged.append([length, status])
    payload = wire.CHUNK_CONTEXT.pack(CONTEXT_ID) + b"".join(wire.DESCRIPTOR.pack(*extent) for extent in merged)
    return _chunk(wire.CHUNK_BLOCK_STATUS, cookie, len(payload)) + payload


class Replies(Protocol):
    """What differs between the two styles."""

    can_split: bool
    """Whether the data of a read may come in chunks, with other replies and even a failure between them."""

    def read_header(self, cookie: int, offset: int, length: int, last: bool = True) -> bytes:
        """What goes before ``length`` bytes of a read at ``offset``; with ``last`` nothing follows them."""
        ...

    def error(self, cookie: int, error: int, message: str = "") -> bytes:
        """The reply to a request that failed with this NBD errno, with a message where the style has room."""
        ...


class SimpleReplies:
    """The style of clients that know no other."""

    can_split = False

    def read_header(self, cookie: int, offset: int, length: int, last: bool = True) -> bytes:
        """As Replies says."""
        return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, cookie)

    def error(self, cookie: int, error: int, message: str = "") -> bytes:
        """As Replies says."""
        return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, cookie)


class StructuredReplies:
    """The style of chunks. A read is one chunk of data, or some in order."""

    can_split = True

    def read_header(self, cookie: int, offset: int, length: int, last: bool = True) -> bytes:
        """As Replies says; a chunk of no data is not allowed, so an empty read gets an empty chunk."""
        if not length:
            return _chunk(wire.CHUNK_NONE, cookie, 0)
        return _DATA_CHUNK.pack(
            wire.CHUNK_MAGIC, last * wire.CHUNK_FLAG_DONE, wire.CHUNK_OFFSET_DATA, cookie, length + 8, offset
        )

    def error(self, cookie: int, error: int, message: str = "") -> bytes:
        """As Replies says."""
        text = message[: wire.MAX_STRING // 4].encode(errors="replace")
        payload = wire.CHUNK_ERROR_START.pack(error, len(text)) + text
        return _chunk(wire.CHUNK_ERROR, cookie, len(payload)) + payload


def _chunk(kind: int, cookie: int, length: int) -> bytes:
    return wire.CHUNK.pack(wire.CHUNK_MAGIC, wire.CHUNK_FLAG_DONE, kind, cookie, length)
