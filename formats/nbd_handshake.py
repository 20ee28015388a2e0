"""The server's side of NBD's fixed newstyle handshake: bytes in, bytes out.

The client names options, one after the other, until it has chosen an export. Every option but EXPORT_NAME can be
refused with a message, and the haggling goes on. Specified in ``doc/proto.md`` of the nbd repository.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError

MAX_OPTION = 65536
"""Bytes of an option's data that are kept; a longer one is refused, and its data dropped."""
MAX_DROPPED = wire.MAX_PAYLOAD
"""Bytes of an option's data that are dropped; a longer one is nonsense."""
CONTEXT_ID = 1
"""How our replies call base:allocation."""


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What a client is told of an export: size in bytes, transmission flags, a line for a person."""

    size: int
    flags: int
    description: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides have agreed on for the transmission.

    ``flags``: the export's transmission flags, as sent. ``block_status``: base:allocation was chosen.
    """

    export: str
    size: int
    flags: int
    structured: bool
    block_status: bool


class OptionError(Exception):
    """An option that is refused: the reply type, and why. Never leaves this module."""

    def __init__(self, reply: int, why: str) -> None:
        super().__init__(why)
        self.reply, self.why = reply, why


def export_flags(read_only: bool) -> int:
    """The transmission flags of an export that can do everything its device protocol can."""
    flags = wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_FUA | wire.FLAG_SEND_CACHE
    flags |= wire.FLAG_CAN_MULTI_CONN
    if read_only:
        return flags | wire.FLAG_READ_ONLY
    return flags | wire.FLAG_SEND_TRIM | wire.FLAG_SEND_WRITE_ZEROES | wire.FLAG_SEND_FAST_ZERO


class ServerHandshake:
    """One client's handshake. Feed it with receive() until it is ``over``.

    Fixed: the exports. Changing, by receive(): the bytes not understood yet, what was negotiated, and the outcome.
    """

    def __init__(self, exports: Mapping[str, ExportInfo]) -> None:
        """``exports``: by name; the name "" chooses the only one where there is only one."""
        self._exports = exports
        self._received = bytearray()
        self._consumed = 0
        self._to_drop = 0
        self._client_flags: int | None = None
        self._structured = False
        self._context_of: str | None = None
        self.over = False
        """No more options: there is an agreement, or the client has gone away in peace (None)."""
        self.agreement: Agreement | None = None

    @property
    def greeting(self) -> bytes:
        """What the server sends first."""
        flags = wire.HANDSHAKE_FIXED_NEWSTYLE | wire.HANDSHAKE_NO_ZEROES
        return wire.GREETING.pack(wire.NBD_MAGIC, wire.OPTION_MAGIC, flags)

    @property
    def rest(self) -> bytes:
        """Bytes received behind the handshake: the first requests of a client in a hurry."""
        return bytes(self._received)

    def receive(self, data: bytes) -> bytes:
        """Take what was received; return what to send, which may be nothing.

        Raises FormatError when the client does not speak the protocol, or names an unknown export with EXPORT_NAME
        (for which there is no reply): the connection is to be closed.
        """
        self._received += data
        return b"".join(self._replies())

    def _replies(self) -> Iterator[bytes]:
        if self._client_flags is None:
            self._read_client_flags()
        while self._client_flags is not None and not self.over and self._drop():
            if len(self._received) < wire.OPTION.size:
                return
            magic, option, length = wire.OPTION.unpack_from(self._received)
            self._check_option(magic, option, length)
            if length > MAX_OPTION:
                self._take(wire.OPTION.size)
                self._to_drop = length
                yield _error(option, wire.REP_ERR_TOO_BIG, f"options have at most {MAX_OPTION} bytes")
                continue
            if len(self._received) < wire.OPTION.size + length:
                return
            yield self._option(option, self._take(wire.OPTION.size + length)[wire.OPTION.size :])

    def _read_client_flags(self) -> None:
        if len(self._received) < wire.CLIENT_FLAGS.size:
            return
        (flags,) = wire.CLIENT_FLAGS.unpack_from(self._received)
        if flags & ~(wire.HANDSHAKE_FIXED_NEWSTYLE | wire.HANDSHAKE_NO_ZEROES):
            raise FormatError(f"the client sets unknown handshake flags {flags:#x}", self._consumed)
        self._take(wire.CLIENT_FLAGS.size)
        self._client_flags = flags

    def _drop(self) -> bool:
        """Drop the data of an option that was too long; True when all of it is gone."""
        dropped = min(self._to_drop, len(self._received))
        self._take(dropped)
        self._to_drop -= dropped
        return self._to_drop == 0

    def _take(self, count: int) -> bytes:
        taken = bytes(self._received[:count])
        del self._received[:count]
        self._consumed += count
        return taken

    def _check_option(self, magic: int, option: int, length: int) -> None:
        if magic != wire.OPTION_MAGIC:
            raise FormatError("the client sends no option", self._consumed)
        if length > (wire.MAX_STRING if option == wire.OPT_EXPORT_NAME else MAX_DROPPED):
            raise FormatError(f"the client sends an option of {length} bytes", self._consumed)

    def _option(self, option: int, data: bytes) -> bytes:
        try:
            if option == wire.OPT_EXPORT_NAME:
                return self._export_name(data)
            if option in (wire.OPT_INFO, wire.OPT_GO):
                return self._info(option, data)
            if option in (wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT):
                return self._meta_context(option, data)
            return self._short_option(option, data)
        except OptionError as error:
            return _error(option, error.reply, error.why)

    def _short_option(self, option: int, data: bytes) -> bytes:
        """The options that have no data."""
        if option == wire.OPT_STARTTLS:
            raise OptionError(wire.REP_ERR_POLICY, "this server has no TLS")
        if option not in (wire.OPT_ABORT, wire.OPT_LIST, wire.OPT_STRUCTURED_REPLY):
            raise OptionError(wire.REP_ERR_UNSUP, f"option {option} is not known here")
        if option == wire.OPT_ABORT:
            self.over = True
        elif data:
            raise OptionError(wire.REP_ERR_INVALID, f"option {option} has no data")
        elif option == wire.OPT_STRUCTURED_REPLY:
            self._structured = True
        else:
            return b"".join(self._list())
        return _reply(option, wire.REP_ACK)

    def _list(self) -> Iterator[bytes]:
        for name, info in self._exports.items():
            yield _reply(wire.OPT_LIST, wire.REP_SERVER, _string(name) + info.description.encode())
        yield _reply(wire.OPT_LIST, wire.REP_ACK)

    def _export_name(self, data: bytes) -> bytes:
        try:
            name, info = self._find(_text(data))
        except OptionError as error:
            raise FormatError(f"the client cannot be served: {error.why}", self._consumed) from error
        self._agree(name, info)
        zeroes = 0 if (self._client_flags or 0) & wire.HANDSHAKE_NO_ZEROES else wire.EXPORT_NAME_ZEROES
        return wire.EXPORT_NAME_REPLY.pack(info.size, self._flags(info)) + bytes(zeroes)

    def _info(self, option: int, data: bytes) -> bytes:
        fields = _Fields(data)
        asked_name = fields.string()
        asked = fields.info_types()
        name, info = self._find(asked_name)
        answers = [wire.INFO_EXPORT_REPLY.pack(wire.INFO_EXPORT, info.size, self._flags(info))]
        if wire.INFO_NAME in asked:
            answers.append(wire.INFO_TYPE.pack(wire.INFO_NAME) + name.encode())
        if wire.INFO_DESCRIPTION in asked and info.description:
            answers.append(wire.INFO_TYPE.pack(wire.INFO_DESCRIPTION) + info.description.encode())
        sizes = wire.MIN_BLOCK, wire.PREFERRED_BLOCK, wire.MAX_PAYLOAD
        answers.append(wire.INFO_BLOCK_SIZE_REPLY.pack(wire.INFO_BLOCK_SIZE, *sizes))
        if option == wire.OPT_GO:
            self._agree(name, info)
        return b"".join(_reply(option, wire.REP_INFO, answer) for answer in answers) + _reply(option, wire.REP_ACK)

    def _meta_context(self, option: int, data: bytes) -> bytes:
        fields = _Fields(data)
        asked_name = fields.string()
        queries = fields.strings()
        if not self._structured:
            raise OptionError(wire.REP_ERR_INVALID, "metadata contexts need structured replies")
        setting = option == wire.OPT_SET_META_CONTEXT
        if setting:
            self._context_of = None
        name, _ = self._find(asked_name)
        wanted = wire.BASE_ALLOCATION in queries or (not setting and (not queries or "base:" in queries))
        if not wanted:
            return _reply(option, wire.REP_ACK)
        if setting:
            self._context_of = name
        context = wire.CHUNK_CONTEXT.pack(CONTEXT_ID if setting else 0) + wire.BASE_ALLOCATION.encode()
        return _reply(option, wire.REP_META_CONTEXT, context) + _reply(option, wire.REP_ACK)

    def _find(self, name: str) -> tuple[str, ExportInfo]:
        if name == "" and name not in self._exports and len(self._exports) == 1:
            (name,) = self._exports
        if name not in self._exports:
            raise OptionError(wire.REP_ERR_UNKNOWN, f"there is no export named {name[:64]!r}")
        return name, self._exports[name]

    def _flags(self, info: ExportInfo) -> int:
        return info.flags | (wire.FLAG_SEND_DF if self._structured else 0)

    def _agree(self, name: str, info: ExportInfo) -> None:
        self.over = True
        chosen = self._context_of == name
        self.agreement = Agreement(name, info.size, self._flags(info), self._structured, chosen)


class _Fields:
    """Reads the fields of an option's data from the front. Every method raises OptionError (INVALID)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def string(self) -> str:
        length = self._number(4)
        if length > wire.MAX_STRING:
            raise OptionError(wire.REP_ERR_INVALID, f"strings have at most {wire.MAX_STRING} bytes")
        return _text(self._bytes(length))

    def strings(self) -> list[str]:
        """A count, and so many strings: all that is left."""
        found = [self.string() for _ in self._counted(4, smallest=4)]
        self._end()
        return found

    def info_types(self) -> list[int]:
        """A count, and so many numbers: all that is left."""
        found = [self._number(2) for _ in self._counted(2, smallest=2)]
        self._end()
        return found

    def _counted(self, width: int, smallest: int) -> range:
        """A count of ``width`` bytes, of things that have at least ``smallest`` bytes each."""
        count = self._number(width)
        if count * smallest > len(self._data) - self._position:
            raise _cut_short()
        return range(count)

    def _number(self, width: int) -> int:
        return int.from_bytes(self._bytes(width), "big")

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._position:
            raise _cut_short()
        self._position += count
        return self._data[self._position - count : self._position]

    def _end(self) -> None:
        if self._position < len(self._data):
            raise OptionError(wire.REP_ERR_INVALID, "the option has more bytes than it should")


def _cut_short() -> OptionError:
    return OptionError(wire.REP_ERR_INVALID, "the option is cut short")


def _text(data: bytes) -> str:
    if len(data) > wire.MAX_STRING:
        raise OptionError(wire.REP_ERR_INVALID, f"strings have at most {wire.MAX_STRING} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OptionError(wire.REP_ERR_INVALID, "strings are UTF-8") from error


def _string(text: str) -> bytes:
    data = text.encode()
    return wire.LENGTH.pack(len(data)) + data


def _reply(option: int, reply: int, data: bytes = b"") -> bytes:
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def _error(option: int, reply: int, why: str) -> bytes:
    return _reply(option, reply, why.encode())
