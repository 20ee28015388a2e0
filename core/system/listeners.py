"""Sockets that wait for clients: private Unix sockets, and TCP."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat

from pybackup.core.errors import BusyError, RequestError, TargetError

BACKLOG = 128


class UnixListener:
    """A listening Unix socket that has a path of its own. Fixed: everything, until close()."""

    def __init__(self, path: str, mode: int) -> None:
        """Bind and listen; nobody but those whom ``mode`` lets can ever connect.

        A socket left behind by a server that is dead is replaced. Raises BusyError when a server lives there,
        RequestError when the path cannot be a socket, TargetError when the system refuses.
        """
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(path)
            self.socket.bind(path)
            # Nobody can connect before listen(): there is no moment of other permissions.
            os.chmod(path, mode)
            self._identity = _identity(path)
            self.socket.listen(BACKLOG)
            self.socket.setblocking(False)
        except OSError as error:
            self.socket.close()
            raise _refusal(path, error) from error
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        """Stop to listen, and remove the path unless it is somebody else's by now."""
        self.socket.close()
        try:
            if _identity(self._path) == self._identity:
                os.unlink(self._path)
        except OSError:
            # Gone already, or in a folder that we may not write to any more: nothing is lost.
            pass


async def tcp_sockets(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of ``host``; port 0 takes a free one, the same for all. Raises TargetError."""
    where = f"{host} port {port}"
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            bound = port or (sockets[0].getsockname()[1] if sockets else 0)
            sockets.append(_tcp_socket(family, (address[0], bound, *address[2:])))
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise TargetError(f"cannot listen on {where}: {error.strerror}") from error
    return sockets


def _tcp_socket(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on; leave anything else alone."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise TargetError(f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise BusyError(f"another server listens on {path}")
    os.unlink(path)


def _identity(path: str) -> tuple[int, int]:
    info = os.lstat(path)
    return info.st_dev, info.st_ino


def _refusal(path: str, error: OSError) -> RequestError | BusyError | TargetError:
    if error.errno is None:
        # Python's own check of the length: sun_path has 108 bytes, unix(7).
        return RequestError(f"{path} is too long for a socket: at most 107 bytes")
    if error.errno == errno.EADDRINUSE:
        return BusyError(f"another server listens on {path}")
    return TargetError(f"cannot listen on {path}: {error.strerror}")
