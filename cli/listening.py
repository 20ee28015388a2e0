"""Where a server listens: its sockets, their folders, and what is printed of them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from pybackup.core.errors import RequestError, TargetError
from pybackup.core.nbd.server import NbdServer
from pybackup.core.places.kinds import RunningServer
from pybackup.core.system.private_folder import private_folder
from pybackup.core.system.systemd import listen_sockets, notify


class ListeningRequest(Protocol):
    """What was asked of where to listen; None for a private folder. ``tcp``: [HOST:]PORT."""

    @property
    def socket(self) -> str | None:
        """Of NBD."""
        ...

    @property
    def tcp(self) -> str | None:
        """Of NBD."""
        ...

    @property
    def control(self) -> str | None:
        """Of the control protocol."""
        ...


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens: the URIs of its exports, and the path of its control socket."""

    uris: Sequence[str]
    control: str

    def announce(self, *, quiet: bool) -> None:
        """Tell systemd that all is ready, and print where to connect."""
        notify("READY=1")
        if not quiet:
            for uri in self.uris:
                print(uri)
            print(RunningServer(os.path.abspath(self.control)))
            sys.stdout.flush()


async def listen(nbd: NbdServer, request: ListeningRequest, names: Sequence[str], stack: AsyncExitStack) -> Listening:
    """Let NBD clients come; who makes the control socket does so at the path that is given back.

    ``stack``: removes the folders that were made.
    """
    given = listen_sockets()
    needs_socket = request.socket is None and request.tcp is None and not given
    folder = _private_folder(stack) if request.control is None or needs_socket else ""
    for path in filter(None, (request.socket, request.control)):
        _make_folder(path, stack)
    where = os.path.join(folder, "nbd.sock") if needs_socket else request.socket
    stack.push_async_callback(nbd.close)
    uris = await _listen(nbd, request.tcp, where, given, names)
    return Listening(uris, request.control or os.path.join(folder, "control.sock"))


def _private_folder(stack: AsyncExitStack) -> str:
    base = os.environ.get("XDG_RUNTIME_DIR")
    try:
        return stack.enter_context(private_folder(base if base and os.path.isdir(base) else None))
    except OSError as error:
        # Where no more files can be open, Python says that it finds no folder: then this says what it is.
        os.close(os.dup(2))
        raise TargetError(f"cannot make a folder for the sockets: {error.strerror}") from error


def _make_folder(path: str, stack: AsyncExitStack) -> None:
    """Make the folder of a socket, private, where its parent is there; it goes with the server."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.mkdir(folder, 0o700)
    except OSError:
        return  # it is there, or whoever listens in it tells why not

    def remove() -> None:
        with contextlib.suppress(OSError):
            os.rmdir(folder)

    stack.callback(remove)


async def _listen(
    nbd: NbdServer, tcp: str | None, path: str | None, given: Sequence[socket.socket], names: Sequence[str]
) -> list[str]:
    """Listen on TCP, at a path, and on the sockets given by systemd; the URIs of all exports."""
    for sock in given:
        nbd.start_socket(sock)
    uris = [uri for sock in given for uri in _uris_of(sock, names)]
    if tcp is not None:
        host, _, port = tcp.rpartition(":")
        if not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise RequestError(f"--tcp {tcp}: write [HOST:]PORT")
        addresses = await nbd.start_tcp(host.strip("[]") or "localhost", int(port))
        uris += [f"nbd://{_bracketed(one)}:{number}/{quote(name)}" for one, number in addresses for name in names]
    if path is not None:
        path = os.path.abspath(path)
        await nbd.start_unix(path)
        uris += [f"nbd+unix:///{quote(name)}?socket={quote(path)}" for name in names]
    return uris


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _uris_of(sock: socket.socket, names: Sequence[str]) -> list[str]:
    if sock.family == socket.AF_UNIX:
        return [f"nbd+unix:///{quote(name)}?socket={quote(str(sock.getsockname()))}" for name in names]
    host, port = sock.getsockname()[:2]
    return [f"nbd://{_bracketed(host)}:{port}/{quote(name)}" for name in names]
