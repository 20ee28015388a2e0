"""What systemd and a service say to each other: sd_notify(3) and sd_listen_fds(3), in a few lines of their own."""

from __future__ import annotations

import contextlib
import os
import socket

FIRST_DESCRIPTOR = 3


def notify(message: str) -> None:
    """Tell the service manager, if there is one, for example "READY=1"."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(message.encode(), address)


def listen_sockets() -> list[socket.socket]:
    """The listening sockets that systemd opened for us; none if it did not."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    sockets = [socket.socket(fileno=number) for number in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count)]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets
