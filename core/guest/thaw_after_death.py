"""What the watchdog does when we die while a guest's filesystems are frozen: it thaws them.

It goes on in the connection that was handed over, for the other end serves one client at a time.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import syslog
import time
from dataclasses import dataclass

from pybackup.core.system.watchdog_process import Note
from pybackup.formats.guest_agent_wire import AgentChannel, Answer

SECONDS = 600
"""How long it is tried: an agent answers when the guest's disks have taken what a freeze flushes to them."""
ATTEMPT_SECONDS = 1.0
THAW = "guest-fsfreeze-thaw"
THAWED = "thawed"
"""The note that nothing needs to be done any more."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The note that filesystems may be frozen from now on: by the agent at this path, for this program."""

    path: str
    program: int

    def __str__(self) -> str:
        return json.dumps([self.path, self.program])

    @classmethod
    def parse(cls, text: str) -> Frozen:
        """What str() made."""
        return cls(*json.loads(text))


def thaw_after_death(notes: list[Note]) -> None:
    """Thaw unless the last note says that this was done."""
    if not notes or notes[-1].text == THAWED:
        return
    frozen = Frozen.parse(notes[0].text)
    end = time.monotonic() + SECONDS - 5 * ATTEMPT_SECONDS
    sock: socket.socket | None = socket.socket(fileno=notes[0].descriptors[0])
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            sock = sock or _connect(frozen.path)
            if _thaw(sock):
                _tell(syslog.LOG_WARNING, frozen, "they are thawed now")
                return
            continue
        if sock is not None:
            sock.close()
            sock = None
        time.sleep(ATTEMPT_SECONDS)
    _tell(syslog.LOG_ERR, frozen, how_to_thaw(frozen.path))


def how_to_thaw(path: str) -> str:
    """What somebody can do by hand: a clause."""
    return (
        f"""try echo '{{"execute":"{THAW}"}}' | socat -t5 - UNIX-CONNECT:{path} or, in the guest,"""
        " fsfreeze --unfreeze MOUNTPOINT"
    )


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(ATTEMPT_SECONDS)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _thaw(sock: socket.socket) -> bool:
    """Ask once; whether the agent says that it has done it. OSError where the connection has ended."""
    channel = AgentChannel(secrets.randbits(60))
    end = time.monotonic() + ATTEMPT_SECONDS
    sock.settimeout(ATTEMPT_SECONDS)
    answers: list[Answer] = []
    try:
        sock.sendall(channel.request(THAW)[1])
        while not answers and (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            content = sock.recv(16 << 10)
            if not content:
                raise ConnectionResetError
            answers = channel.receive(content)
    except TimeoutError:
        return False
    if answers and answers[0].error is not None:
        time.sleep(max(0.0, end - time.monotonic()))
    return bool(answers) and answers[0].error is None


def _tell(priority: int, frozen: Frozen, what: str) -> None:
    """Nobody may look at our terminal any more, so the system's log is told."""
    syslog.openlog("pybackup", syslog.LOG_PID)
    syslog.syslog(
        priority,
        f"process {frozen.program} was killed or suspended while a guest's filesystems were frozen through the guest"
        f" agent at {frozen.path}: {what}",
    )
