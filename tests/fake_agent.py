"""A QEMU guest agent that does what a test wants: one client at a time, one command after the other."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OF_A_FROZEN_GUEST = ("guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw")
DISABLED = "Command {} has been disabled: the agent is in frozen state"


class FakeAgent:
    """Fixed: the path, how many filesystems there are.

    Changing: whether they are frozen, what was done, who is connected; ``instead``: by the name of a command, what is
    done instead of it the next times: a function of the agent that returns what is sent, None for nothing; ``prefix``:
    what comes out of the channel before anything else, for each client.
    """

    def __init__(self, path: Path, filesystems: int = 2, *, listening: bool = True) -> None:
        self.path, self.filesystems = str(path), filesystems
        self.frozen = False
        self.done: list[str] = []
        self.clients = 0
        self.prefix = b""
        self.instead: dict[str, list[Callable[[FakeAgent], bytes | None]]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._client: socket.socket | None = None
        self._closed = False
        if listening:
            self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                self._client, _ = self._listener.accept()
                self.clients += 1
                with self._client as client:
                    client.sendall(self.prefix)
                    self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        received = b""
        while more := client.recv(4096):
            *lines, received = (received + more).split(b"\n")
            for line in lines:
                self._take(client, line)

    def _take(self, client: socket.socket, line: bytes) -> None:
        garbage, sentinel, text = line.rpartition(b"\xff")
        if sentinel:
            # An agent takes offence at the byte, and at what it ends.
            client.sendall(_error("Invalid JSON syntax") + (_error("Expecting a value") if garbage else b""))
        request = json.loads(text)
        answer = self._answer(request["execute"], request.get("arguments", {}))
        if answer is not None:
            client.sendall(answer)

    def _answer(self, command: str, arguments: dict[str, Any]) -> bytes | None:
        if command == "guest-sync-delimited":
            if others := self.instead.get(command):
                return others.pop(0)(self)
            return b"\xff" + _return(arguments["id"])
        self.done.append(command)
        if others := self.instead.get(command):
            return others.pop(0)(self)
        return self.carry_out(command)

    def carry_out(self, command: str) -> bytes:
        """What a real one does."""
        if self.frozen and command not in OF_A_FROZEN_GUEST:
            return _error(DISABLED.format(command))
        if command == "guest-fsfreeze-status":
            return _return("frozen" if self.frozen else "thawed")
        before, self.frozen = self.frozen, command == "guest-fsfreeze-freeze"
        return _return(self.filesystems if self.frozen != before else 0)

    def close_client(self) -> None:
        """Hang up."""
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End; the socket's name goes too."""
        self._closed = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        for sock in (self._listener, self._client):
            with contextlib.suppress(OSError):
                if sock is not None:
                    sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()
        assert not self._thread.is_alive()


@contextlib.contextmanager
def fake_agent(path: Path, filesystems: int = 2) -> Iterator[FakeAgent]:
    """An agent that listens; at the end nothing may be frozen."""
    agent = FakeAgent(path, filesystems)
    try:
        yield agent
    finally:
        agent.close()


# -- what it may do instead --


def refuses(words: str) -> Callable[[FakeAgent], bytes]:
    """An error with this description."""
    return lambda agent: _error(words)


def says(answer: bytes) -> Callable[[FakeAgent], bytes]:
    """These bytes, whatever was asked."""
    return lambda agent: answer


def is_silent(agent: FakeAgent) -> None:
    """Nothing is done, nothing said."""


def late(command: str, until: threading.Event) -> Callable[[FakeAgent], bytes]:
    """The right thing, but when the time has come."""

    def carried_out(agent: FakeAgent) -> bytes:
        assert until.wait(60)
        return agent.carry_out(command)

    return carried_out


def _return(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


def _error(words: str) -> bytes:
    return json.dumps({"error": {"class": "GenericError", "desc": words}}).encode() + b"\n"
