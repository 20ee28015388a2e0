"""The constants and structures of the NBD protocol, and nothing else.

Specified in ``doc/proto.md`` of https://github.com/NetworkBlockDevice/nbd. All numbers are big-endian. Only the fixed
newstyle handshake and compact (not extended) headers are here.
"""

from __future__ import annotations

import struct

# -- limits --

MAX_PAYLOAD = 32 * 1024 * 1024
"""Bytes of data in one request or reply: what every client may count on, and what ours and others keep to."""
MAX_STRING = 4096
"""Bytes of a name, query or message."""
MIN_BLOCK, PREFERRED_BLOCK = 1, 4096
"""Bytes: any alignment is allowed, whole pages are best."""

# -- handshake --

GREETING = struct.Struct(">QQH")
"""NBDMAGIC, IHAVEOPT, handshake flags"""
NBD_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
HANDSHAKE_FIXED_NEWSTYLE = 1
HANDSHAKE_NO_ZEROES = 2
CLIENT_FLAGS = struct.Struct(">I")
"""The same two bits, as the client wants them."""

OPTION = struct.Struct(">QII")
"""IHAVEOPT, option, length of the data that follows"""
OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

EXPORT_NAME_REPLY = struct.Struct(">QH")
"""size in bytes, transmission flags; then EXPORT_NAME_ZEROES zeros unless both sides said NO_ZEROES"""
EXPORT_NAME_ZEROES = 124

OPTION_REPLY = struct.Struct(">QIII")
"""magic, option, reply type, length of the data that follows"""
OPTION_REPLY_MAGIC = 0x3E889045565A9
REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR = 1 << 31
"""The bit that all errors have; their data is a message for a person."""
REP_ERR_UNSUP = REP_ERROR + 1
REP_ERR_POLICY = REP_ERROR + 2
REP_ERR_INVALID = REP_ERROR + 3
REP_ERR_UNKNOWN = REP_ERROR + 6
REP_ERR_TOO_BIG = REP_ERROR + 9

LENGTH = struct.Struct(">I")
"""A 32-bit length or count before a string or a list."""
INFO_TYPE = struct.Struct(">H")
INFO_EXPORT_REPLY = struct.Struct(">HQH")
"""INFO_EXPORT, size in bytes, transmission flags"""
INFO_BLOCK_SIZE_REPLY = struct.Struct(">HIII")
"""INFO_BLOCK_SIZE, smallest, preferred and largest block in bytes"""
INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3

BASE_ALLOCATION = "base:allocation"
"""The one metadata context of the specification: where are holes, where are zeros."""
DIRTY_BITMAP = "qemu:dirty-bitmap:"
"""What QEMU's contexts of dirty bitmaps begin with; the bitmap's name follows (docs/interop/nbd.txt of QEMU)."""

# -- transmission flags: what an export can do --

FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_SEND_FLUSH = 1 << 2
FLAG_SEND_FUA = 1 << 3
FLAG_ROTATIONAL = 1 << 4
FLAG_SEND_TRIM = 1 << 5
FLAG_SEND_WRITE_ZEROES = 1 << 6
FLAG_SEND_DF = 1 << 7
FLAG_CAN_MULTI_CONN = 1 << 8
FLAG_SEND_CACHE = 1 << 10
FLAG_SEND_FAST_ZERO = 1 << 11

# -- requests --

REQUEST = struct.Struct(">IHHQQI")
"""magic, command flags, command, cookie, offset, length; a write's data follows"""
REQUEST_MAGIC = 0x25609513
CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7
CMD_FLAG_FUA = 1 << 0
CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2
CMD_FLAG_REQ_ONE = 1 << 3
CMD_FLAG_FAST_ZERO = 1 << 4

# -- replies --

SIMPLE_REPLY = struct.Struct(">IIQ")
"""magic, error, cookie; a read's data follows when the error is 0"""
SIMPLE_REPLY_MAGIC = 0x67446698

CHUNK = struct.Struct(">IHHQI")
"""magic, chunk flags, chunk type, cookie, length of the payload that follows"""
CHUNK_MAGIC = 0x668E33EF
CHUNK_FLAG_DONE = 1
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_ERROR = (1 << 15) + 1
CHUNK_ERROR_OFFSET = (1 << 15) + 2
CHUNK_ERROR_BIT = 1 << 15

CHUNK_OFFSET = struct.Struct(">Q")
"""Offset of the data that follows."""
CHUNK_HOLE = struct.Struct(">QI")
"""offset, length"""
CHUNK_ERROR_START = struct.Struct(">IH")
"""error, length of the message that follows"""
CHUNK_CONTEXT = struct.Struct(">I")
"""Id of the metadata context; descriptors follow."""
DESCRIPTOR = struct.Struct(">II")
"""length in bytes, status flags"""
STATE_HOLE = 1
STATE_ZERO = 2

# -- errors: the values of Linux, whatever the system --

NBD_EPERM = 1
NBD_EIO = 5
NBD_ENOMEM = 12
NBD_EINVAL = 22
NBD_ENOSPC = 28
NBD_EOVERFLOW = 75
NBD_ENOTSUP = 95
NBD_ESHUTDOWN = 108
