"""The process behind core/system/watchdog.py, which is started by the path of this file.

It waits with next to nothing loaded. Its standard input is the only descriptor that it shares with us: one end of a
pair of sockets (SOCK_SEQPACKET), so that a message comes whole or not at all, also from a process that is killed, and
what was sent before the process even ran is not lost. The other end is closed by the kernel, however we end.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

MOST_BYTES = 64 << 10
"""Bytes of a message."""
MOST_DESCRIPTORS = 16
"""Descriptors that come with a message."""
LOOK_SECONDS = 0.25
"""How often a watchdog looks that was told what to look at."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)
"""A terminal, and systemd when it stops a unit, send these to everybody; who watches ends when the one watched does."""


class Note(NamedTuple):
    """What the process that is watched handed over: a text, and descriptors that are the receiver's own."""

    text: str
    descriptors: tuple[int, ...]


def main() -> None:
    """Take the order, and carry it out when the time has come."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    parent = socket.socket(fileno=0)
    order = json.loads(parent.recv(MOST_BYTES))
    sys.path[:] = order["path"]
    try:
        functions = order["functions"]
        module = importlib.import_module(functions["module"])
        act = getattr(module, functions["act"])
        look = getattr(module, functions["look"]) if functions["look"] else None
    except Exception as error:
        _answer(parent, {"failed": f"{type(error).__name__}: {error}"})
        return
    _answer(parent, {"ready": True})
    notes = _wait(parent, look)
    if notes is not None:
        signal.alarm(order["seconds"])
        act(notes)


def _answer(parent: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more
        parent.send(json.dumps(message).encode())


def _wait(parent: socket.socket, look: Callable[[list[Note]], None] | None) -> list[Note] | None:
    """What was handed over by a process that has died, or let its time pass; None where we are not needed."""
    notes: list[Note] = []
    until: float | None = None
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not poll.poll(_milliseconds(left, LOOK_SECONDS if look else None)):
            if until is not None and time.monotonic() >= until:
                break
            if look is not None:
                look(notes)
            continue
        content, descriptors = _receive(parent)
        if not content:
            break
        message = json.loads(content)
        if "dismissed" in message:
            return None
        notes.append(Note(message["note"], descriptors))
        until = None if message["within"] is None else time.monotonic() + message["within"]
    # Who lives after all learns by this that somebody has acted for him.
    parent.close()
    return notes


def _milliseconds(*seconds: float | None) -> float | None:
    """The shortest of these times, as poll() wants it."""
    known = [one * 1000 for one in seconds if one is not None]
    return min(known) if known else None


def _receive(parent: socket.socket) -> tuple[bytes, tuple[int, ...]]:
    numbers = array.array("i")
    room = socket.CMSG_SPACE(MOST_DESCRIPTORS * numbers.itemsize)
    try:
        content, ancillary, _, _ = parent.recvmsg(MOST_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # He died without having read our answer. Linux says so once, in front of what he had sent before.
        content, ancillary, _, _ = parent.recvmsg(MOST_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data)
    return content, tuple(numbers)


if __name__ == "__main__":
    main()
