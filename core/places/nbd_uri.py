"""NBD URIs, after ``doc/uri.md`` of https://github.com/NetworkBlockDevice/nbd."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from pybackup.core.errors import RequestError
from pybackup.formats.nbd_wire import MAX_STRING

SCHEMES = ("nbd", "nbd+unix")
DEFAULT_PORT = 10809
_REFUSED = {
    "nbds": "TLS is not supported; a tunnel (ssh -L) protects the connection",
    "nbds+unix": "TLS is not supported",
    "nbd+vsock": "vsock is not supported",
    "nbds+vsock": "vsock is not supported",
}


class NbdAddress(NamedTuple):
    """Where an export is: a Unix socket's path, or a host and a TCP port; and the export's name.

    A path that begins with NUL is in Linux's abstract namespace.
    """

    export: str
    socket: str | None = None
    host: str = "localhost"
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        if self.socket is not None:
            where = repr(self.socket)
        return f"export {self.export!r} of the NBD server at {where}" if self.export else f"the NBD server at {where}"


def is_nbd_uri(what: str) -> bool:
    """Whether this is a name for parse_nbd_uri(), perhaps one that it refuses."""
    scheme, found, _ = what.partition("://")
    return bool(found) and scheme.lower() in (*SCHEMES, *_REFUSED)


def parse_nbd_uri(uri: str) -> NbdAddress:
    """The address that a URI names (RequestError)."""
    # urlsplit() would leave these out without a word.
    if not uri.isprintable() or uri != uri.strip():
        raise _wrong(uri, "write characters that cannot be printed, and blanks at its ends, as %XX")
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise _wrong(uri, str(error)) from None
    if parts.scheme in _REFUSED:
        raise RequestError(f"{uri}: {_REFUSED[parts.scheme]}")
    if parts.username is not None:
        raise RequestError(f"{uri}: a user name goes with TLS only, which is not supported")
    if "#" in uri:
        raise _wrong(uri, "write # as %23")
    export = _export(uri, parts.path)
    socket = _socket(uri, parts)
    if socket is not None:
        return NbdAddress(export, socket=socket)
    if port == 0:
        raise _wrong(uri, "0 is no port")
    host = _text(uri, parts.hostname or "localhost")
    return NbdAddress(export, host=host, port=DEFAULT_PORT if port is None else port)


def _export(uri: str, path: str) -> str:
    """The path without its leading slash; what is left may begin with one."""
    export = _text(uri, path.removeprefix("/"))
    if len(export.encode()) > MAX_STRING:
        raise _wrong(uri, f"an export's name has at most {MAX_STRING} bytes")
    if "\0" in export:
        raise _wrong(uri, "an export's name has no NUL")
    return export


def _socket(uri: str, parts: SplitResult) -> str | None:
    sockets = []
    for parameter in filter(None, parts.query.split("&")):
        key, _, value = parameter.partition("=")
        # What we do not understand may be meant to protect the connection, so it is not passed over.
        if key != "socket" or parts.scheme == "nbd":
            raise _wrong(uri, f"{parts.scheme}:// has no parameter {key!r}")
        sockets.append(_path(uri, value))
    if parts.scheme == "nbd":
        return None
    if parts.netloc or len(sockets) != 1 or not sockets[0]:
        raise _wrong(uri, "write nbd+unix:///EXPORT?socket=PATH")
    return sockets[0]


def _path(uri: str, text: str) -> str:
    """A path may hold any bytes; a plus is a plus, unlike in a form's query."""
    path = unquote_to_bytes(text.encode(errors="surrogateescape")).decode(errors="surrogateescape")
    if "\0" in path[1:]:
        raise _wrong(uri, "a path has no NUL but, for an abstract socket, its first character")
    return path


def _text(uri: str, text: str) -> str:
    try:
        return unquote_to_bytes(text.encode(errors="surrogateescape")).decode()
    except UnicodeDecodeError:
        raise _wrong(uri, "it is not UTF-8") from None


def _wrong(uri: str, why: str) -> RequestError:
    return RequestError(f"{uri!r} is no NBD URI: {why}")
