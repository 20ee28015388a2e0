"""NBD URIs, after ``doc/uri.md`` of https://github.com/NetworkBlockDevice/nbd."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from .errors import RequestError

SCHEMES = ("nbd://", "nbd+unix://")
DEFAULT_PORT = 10809
_REFUSED = {
    "nbds": "TLS is not supported; a tunnel (ssh -L) protects the connection",
    "nbds+unix": "TLS is not supported",
    "nbd+vsock": "vsock is not supported",
    "nbds+vsock": "vsock is not supported",
}


class NbdAddress(NamedTuple):
    """Where an export is: a Unix socket's path, or a host and a TCP port; and the export's name."""

    export: str
    socket: str | None = None
    host: str = "localhost"
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        where = self.socket or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")
        return f"export {self.export!r} of the NBD server at {where}" if self.export else f"the NBD server at {where}"


def is_nbd_uri(what: str) -> bool:
    """Whether this is a name for parse_nbd_uri(), perhaps one that it refuses."""
    scheme, found, _ = what.partition("://")
    return bool(found) and (f"{scheme}://" in SCHEMES or scheme in _REFUSED)


def parse_nbd_uri(uri: str) -> NbdAddress:
    """The address that a URI names (RequestError)."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise RequestError(f"{uri} is no NBD URI: {error}") from None
    if parts.scheme in _REFUSED:
        raise RequestError(f"{uri}: {_REFUSED[parts.scheme]}")
    if parts.username is not None:
        raise RequestError(f"{uri}: a user name goes with TLS only, which is not supported")
    export = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "nbd":
        host = unquote(parts.hostname or "localhost")
        return NbdAddress(export, host=host, port=DEFAULT_PORT if port is None else port)
    sockets = parse_qs(parts.query).get("socket", [])
    if parts.netloc or len(sockets) != 1:
        raise RequestError(f"{uri} is no NBD URI: write nbd+unix:///EXPORT?socket=PATH")
    return NbdAddress(export, socket=sockets[0])
