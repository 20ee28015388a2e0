"""Devices offered to NBD clients, over Unix sockets and TCP."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Mapping

from pybackup.core.device import BlockDevice
from pybackup.core.errors import RequestError
from pybackup.core.system.allocator import give_back_freed_memory
from pybackup.core.system.listeners import UnixListener, tcp_sockets
from pybackup.core.tasks import end, wait
from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError
from pybackup.formats.nbd_handshake import ExportInfo, ServerHandshake, export_flags
from pybackup.formats.nbd_transmission import PayloadBuffers

from .connection import NbdConnection
from .few_lines import FewLines
from .memory_shares import MemoryPool

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a client to choose an export; QEMU's default (handshake-max-secs)."""
GRACE = 5.0
"""Seconds that close() gives clients to take their last answers."""
MAX_CONNECTIONS = 64
"""Clients at once: nbdcopy makes 4 connections, Linux's nbd-client up to 16."""
ACCEPT_PAUSE = 1.0
"""Seconds to wait when the system has no descriptor or memory for another client; asyncio waits as long."""

_RECEIVE = 1024
"""Bytes of options that are answered at once: a list of all exports may be asked for with 16."""
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""A client that is silent for a minute is asked, and one whose machine is gone for two is given up."""
_CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid"""
_SEND_BUFFER = 1 << 20
"""Bytes of answers that the kernel should hold: Linux allows what net.core.wmem_max says, 208 KiB by default."""

_log = logging.getLogger(__name__)


class NbdServer:
    """Serves devices until close().

    Fixed: the exports and limits. Changing, in the event loop only: listeners and clients. The devices stay the
    caller's: open until close() has returned, and his to close.
    """

    def __init__(
        self,
        exports: Mapping[str, BlockDevice],
        *,
        max_connections: int = MAX_CONNECTIONS,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        """``exports``: by name, at most 4096 bytes of UTF-8. Raises RequestError for a name that cannot be."""
        self._exports = dict(exports)
        self._infos = {
            name: ExportInfo(device.size, export_flags(device.read_only)) for name, device in exports.items()
        }
        _check_names(self._exports)
        self._max_connections = max_connections
        self._handshake_timeout = handshake_timeout
        self._payloads = PayloadBuffers()
        self._memory = MemoryPool()
        self._lines = FewLines(_log)
        self._closing = False
        self._listeners: list[UnixListener | socket.socket] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._clients: set[asyncio.Task[None]] = set()
        self._connections: dict[NbdConnection, str] = {}

    async def start_unix(self, path: str, mode: int = 0o600) -> None:
        """Listen on a Unix socket. Raises BusyError, RequestError or TargetError."""
        listener = UnixListener(path, mode)
        self._listen(listener, listener.socket)

    async def start_tcp(self, host: str = "localhost", port: int = 10809) -> list[tuple[str, int]]:
        """Listen on every address of ``host``; return the addresses and ports. Raises TargetError."""
        sockets = await tcp_sockets(host, port)
        for listener in sockets:
            self.start_socket(listener)
        return [listener.getsockname()[:2] for listener in sockets]

    def start_socket(self, listener: socket.socket) -> None:
        """Take clients from a socket that listens already, as systemd passes them; it is closed by close()."""
        listener.setblocking(False)
        self._listen(listener, listener)

    @property
    def connections(self) -> int:
        """Clients that have chosen an export."""
        return len(self._connections)

    @property
    def requests_in_flight(self) -> int:
        """Requests that devices work on."""
        return sum(connection.requests_in_flight for connection in self._connections)

    def connections_by_export(self) -> dict[str, int]:
        """Clients of every export, 0 included."""
        counts = Counter(self._connections.values())
        return {name: counts[name] for name in self._exports}

    async def close(self, grace: float = GRACE) -> None:
        """Take no more clients and requests, answer what is in flight, and let go of all clients.

        Who has not taken his answers after ``grace`` seconds does not get them. What a device works on is waited
        for. A second close does nothing.
        """
        self._closing = True
        await end(self._accepting)
        for listener in self._listeners:
            listener.close()
        await end(self._handshakes)
        for connection in self._connections:
            connection.stop()
        await wait(self._clients, grace)
        for connection in self._connections:
            connection.abort()
        await wait(self._clients)
        self._lines.sum_up()

    # -- clients --

    def _listen(self, listener: UnixListener | socket.socket, sock: socket.socket) -> None:
        self._listeners.append(listener)
        self._accepting.add(asyncio.get_running_loop().create_task(self._accept(sock)))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                _log.error("cannot take an NBD client: %s", error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if not self._has_place():
                self._lines.warning(
                    "NBD client %s is turned away: there are %d already", _peer(sock), len(self._clients)
                )
                sock.close()
                continue
            client = loop.create_task(self._serve(sock))
            self._clients.add(client)
            self._handshakes[client] = None
            client.add_done_callback(self._ended)

    def _has_place(self) -> bool:
        """Whether one more client may come; who is longest about choosing an export gives way to it."""
        if len(self._clients) < self._max_connections:
            return True
        oldest = next(iter(self._handshakes), None)
        if oldest is None:
            return False
        _log.info("an NBD client that has chosen no export gives way to another one")
        del self._handshakes[oldest]
        return oldest.cancel()

    def _ended(self, client: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        self._handshakes.pop(client, None)

    async def _serve(self, sock: socket.socket) -> None:
        """Look after one client until it has gone."""
        with sock:
            peer = _peer(sock)
            try:
                handshake = await self._shake_hands(sock)
                if handshake is not None:
                    await self._transmit(sock, handshake, peer)
            except TimeoutError:
                _log.info("NBD client %s chose no export within %g s", peer, self._handshake_timeout)
            except (FormatError, OSError) as error:
                _log.info("NBD client %s has gone: %s", peer, error)

    async def _shake_hands(self, sock: socket.socket) -> ServerHandshake | None:
        """The handshake when it is over, or None when the client has gone meanwhile."""
        if self._closing:
            return None
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(self._handshake_timeout):
                return await self._negotiate(sock)
        finally:
            self._handshakes.pop(task, None)

    async def _negotiate(self, sock: socket.socket) -> ServerHandshake | None:
        loop = asyncio.get_running_loop()
        _tune(sock)
        handshake = ServerHandshake(self._infos)
        await loop.sock_sendall(sock, handshake.greeting)
        while not handshake.over:
            received = await loop.sock_recv(sock, _RECEIVE)
            if not received:
                return None
            await loop.sock_sendall(sock, handshake.receive(received))
        return handshake

    async def _transmit(self, sock: socket.socket, handshake: ServerHandshake, peer: str) -> None:
        agreement = handshake.agreement
        if agreement is None or self._closing:
            return
        device = self._exports[agreement.export]
        connection = NbdConnection(
            sock, peer, device, agreement, handshake.rest, self._payloads, self._memory, self._lines
        )
        self._connections[connection] = agreement.export
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            if not self._connections:
                self._payloads.clear()
                give_back_freed_memory()


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if len(name.encode(errors="replace")) > wire.MAX_STRING or not name.isprintable():
            raise RequestError(f"an NBD export cannot be named {name[:64]!r}")


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _peer(sock: socket.socket) -> str:
    """The client's name in messages."""
    try:
        if sock.family == socket.AF_UNIX:
            pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            return f"process {pid}"
        host, port = sock.getpeername()[:2]
        return f"{host} port {port}"
    except OSError:
        return "unknown"
