"""The client's side of NBD's wire: requests to bytes, bytes of replies to values.

Only encoding and decoding; in which order to send and receive is the client's matter. Every decode function raises
FormatError for what the specification does not allow (``doc/proto.md`` of the nbd repository).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError

REPLY_START_SIZE = wire.SIMPLE_REPLY.size
"""Bytes to receive before it is known which kind of reply this is: all of a simple one, most of a chunk's header."""
CHUNK_REST_SIZE = wire.CHUNK.size - wire.SIMPLE_REPLY.size
MOST_OPTION_REPLY = 2 * wire.MAX_STRING + 64
"""Bytes of data in a reply to an option: two strings at most, a name and its description, and a few numbers."""
MOST_STATUS = wire.CHUNK_CONTEXT.size + (1 << 20) * wire.DESCRIPTOR.size
"""Bytes in a block status: nbdkit sends up to a million extents, others fewer."""
MOST_EXTENTS = 1 << 16
"""Extents taken from one block status; for the rest one asks again."""
MOST_SPOKEN = 200
"""Characters of a message that are passed on to the user."""


class OptionReply(NamedTuple):
    """The header of a reply to an option; ``length`` bytes of data follow."""

    option: int
    kind: int
    length: int


class Export(NamedTuple):
    """What INFO_EXPORT says: size in bytes and transmission flags."""

    size: int
    flags: int


class SimpleReply(NamedTuple):
    """A simple reply: an NBD errno, or 0, and the data of a read follows."""

    error: int
    cookie: int


class Chunk(NamedTuple):
    """The header of a chunk of a structured reply; ``length`` bytes of payload follow."""

    done: bool
    kind: int
    cookie: int
    length: int


def decode_greeting(data: bytes) -> int:
    """The server's handshake flags, from wire.GREETING.size bytes."""
    magic, option_magic, flags = wire.GREETING.unpack(data)
    if magic != wire.NBD_MAGIC:
        raise FormatError("this is no NBD server")
    if option_magic != wire.OPTION_MAGIC or not flags & wire.HANDSHAKE_FIXED_NEWSTYLE:
        raise FormatError("the NBD server is too old: it does not speak the fixed newstyle protocol")
    return int(flags)


def encode_client_flags(handshake_flags: int) -> bytes:
    """The answer to the greeting, whose flags these are: all that we know of them."""
    return wire.CLIENT_FLAGS.pack(handshake_flags & (wire.HANDSHAKE_FIXED_NEWSTYLE | wire.HANDSHAKE_NO_ZEROES))


def encode_option(option: int, data: bytes = b"") -> bytes:
    """An option with its data."""
    return wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data


def encode_go(export: str, info_types: Sequence[int] = (), option: int = wire.OPT_GO) -> bytes:
    """GO or INFO for an export, asking for more information (INFO_...) than is sent anyway."""
    wanted = b"".join(wire.INFO_TYPE.pack(kind) for kind in info_types)
    return encode_option(option, _string(export) + wire.INFO_TYPE.pack(len(info_types)) + wanted)


def encode_meta_context(export: str, queries: Sequence[str], option: int = wire.OPT_SET_META_CONTEXT) -> bytes:
    """SET_META_CONTEXT or LIST_META_CONTEXT for an export."""
    data = _string(export) + wire.LENGTH.pack(len(queries)) + b"".join(map(_string, queries))
    return encode_option(option, data)


def decode_option_reply(data: bytes) -> OptionReply:
    """The header of a reply to an option, from wire.OPTION_REPLY.size bytes."""
    magic, option, kind, length = wire.OPTION_REPLY.unpack(data)
    if magic != wire.OPTION_REPLY_MAGIC:
        raise FormatError("the NBD server sends no reply to an option")
    if length > MOST_OPTION_REPLY:
        raise FormatError(f"the NBD server sends a reply of {length} bytes to an option")
    return OptionReply(option, kind, length)


def decode_info_export(data: bytes) -> Export | None:
    """What the data of a REP_INFO says of the export; None when it is about something else."""
    if data[:2] != wire.INFO_TYPE.pack(wire.INFO_EXPORT):
        return None
    _, size, flags = _unpack(wire.INFO_EXPORT_REPLY, data)
    return Export(size, flags)


def decode_info_block_size(data: bytes) -> tuple[int, int] | None:
    """Smallest and largest block in bytes, from the data of a REP_INFO; None when it is about something else."""
    if data[:2] != wire.INFO_TYPE.pack(wire.INFO_BLOCK_SIZE):
        return None
    _, smallest, _, largest = _unpack(wire.INFO_BLOCK_SIZE_REPLY, data)
    if not 1 <= smallest <= 1 << 16 or smallest & (smallest - 1) or largest < smallest:
        raise FormatError(f"the NBD server wants blocks of {smallest} to {largest} bytes, which makes no sense")
    return smallest, largest // smallest * smallest


def decode_meta_context(data: bytes) -> tuple[int, str]:
    """Id and name of a metadata context, from the data of a REP_META_CONTEXT."""
    (identity,) = _unpack(wire.CHUNK_CONTEXT, data[: wire.CHUNK_CONTEXT.size])
    return identity, data[wire.CHUNK_CONTEXT.size :].decode(errors="replace")


def encode_request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """A request; the data of a write is to be sent right behind it."""
    return wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, cookie, offset, length)


def is_chunk(start: bytes) -> bool:
    """Whether these first bytes of a reply are those of a chunk, so that CHUNK_REST_SIZE more are its header."""
    return start[:4] == wire.LENGTH.pack(wire.CHUNK_MAGIC)


def decode_simple_reply(data: bytes) -> SimpleReply:
    """A simple reply, from wire.SIMPLE_REPLY.size bytes."""
    magic, error, cookie = wire.SIMPLE_REPLY.unpack(data)
    if magic != wire.SIMPLE_REPLY_MAGIC:
        raise FormatError("the NBD server sends no reply")
    return SimpleReply(error, cookie)


def decode_chunk(data: bytes) -> Chunk:
    """The header of a chunk, from wire.CHUNK.size bytes."""
    magic, flags, kind, cookie, length = wire.CHUNK.unpack(data)
    if magic != wire.CHUNK_MAGIC:
        raise FormatError("the NBD server sends no chunk of a reply")
    if length > _longest_chunk(kind):
        raise FormatError(f"the NBD server sends a chunk of {length} bytes")
    return Chunk(bool(flags & wire.CHUNK_FLAG_DONE), kind, cookie, length)


def _longest_chunk(kind: int) -> int:
    """So much is received at most before the content is looked at."""
    if kind == wire.CHUNK_OFFSET_DATA:
        return wire.CHUNK_OFFSET.size + wire.MAX_PAYLOAD
    return MOST_STATUS if kind == wire.CHUNK_BLOCK_STATUS else MOST_OPTION_REPLY


def decode_hole(payload: bytes) -> tuple[int, int]:
    """Offset and length in bytes, from the payload of OFFSET_HOLE."""
    offset, length = _unpack(wire.CHUNK_HOLE, payload)
    return offset, length


def decode_error(payload: bytes) -> tuple[int, str]:
    """NBD errno and message, from the payload of any chunk whose type has CHUNK_ERROR_BIT."""
    size = wire.CHUNK_ERROR_START.size
    error, length = _unpack(wire.CHUNK_ERROR_START, payload[:size])
    if length > len(payload) - size or not error:
        raise FormatError("the NBD server sends an error that makes no sense")
    return error, decode_message(payload[size : size + length])


def decode_message(data: bytes) -> str:
    """What the server says to a person, without what a terminal would obey."""
    text = data[: 4 * MOST_SPOKEN].decode(errors="replace").strip()
    return "".join(one if one.isprintable() else "?" for one in text[:MOST_SPOKEN])


def decode_block_status(payload: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Metadata context id and (length in bytes, status flags) of each extent, from a BLOCK_STATUS payload.

    Not more than MOST_EXTENTS: a reply may always tell less than was asked for.
    """
    context, rest = payload[: wire.CHUNK_CONTEXT.size], payload[wire.CHUNK_CONTEXT.size :]
    if not rest or len(rest) % wire.DESCRIPTOR.size:
        raise FormatError("the NBD server sends a block status of the wrong length")
    (identity,) = _unpack(wire.CHUNK_CONTEXT, context)
    extents = list(islice(wire.DESCRIPTOR.iter_unpack(rest), MOST_EXTENTS))
    if not all(length for length, _ in extents):
        raise FormatError("the NBD server sends a block status with an empty extent")
    return identity, extents


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise FormatError(f"the NBD server sends {len(data)} bytes where {layout.size} are due")
    return layout.unpack(data)


def _string(text: str) -> bytes:
    data = text.encode()
    return wire.LENGTH.pack(len(data)) + data
