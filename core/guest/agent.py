"""A QEMU guest agent that we are connected to: at the Unix socket that is the other end of its channel."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Iterator
from typing import Any

from pybackup.formats.guest_agent_wire import AgentChannel, Answer

ANSWER_SECONDS = 5.0
"""How long an agent may take to answer what takes it no time: an agent that does not run answers never."""
RETRY_SECONDS = 0.1
_RECEIVE = 16 << 10


class AgentError(Exception):
    """What went wrong, in words that can follow a colon."""


class NoAnswerError(AgentError):
    """There was no answer in time: what was asked may be done, and done later."""


class AgentLostError(AgentError):
    """The connection cannot be made, or has ended."""


class AgentRefusedError(AgentError):
    """The agent refuses; ``reason`` is what it says."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class GuestAgent:
    """Made by connect(). Fixed: the path, the socket. Changing: the channel, and answers that nobody took yet."""

    def __init__(self, path: str, sock: socket.socket) -> None:
        self.path, self._socket = path, sock
        self._channel = AgentChannel(secrets.randbits(60))
        self._answers: dict[int, Answer] = {}

    @classmethod
    async def connect(cls, path: str, seconds: float = ANSWER_SECONDS) -> GuestAgent:
        """Connect to the socket, which does not mean that there is an agent behind it (AgentLostError)."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(seconds):
                while not _connect(sock, path):  # noqa: ASYNC110 - in another process
                    await asyncio.sleep(RETRY_SECONDS)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            # A deadline's error, and Python's own check of the path's length, have no errno.
            why = "too many others wait" if isinstance(error, TimeoutError) else error.strerror or error
            raise AgentLostError(f"cannot connect to a guest agent at {path}: {why}") from None
        return cls(path, sock)

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self._socket.fileno()

    async def ask(self, command: str, seconds: float = ANSWER_SECONDS) -> Any:
        """Send a command and wait for its answer (AgentError)."""
        number = await self.send(command, seconds)
        return await self.answer({number}, command, seconds)

    async def send(self, command: str, seconds: float = ANSWER_SECONDS) -> int:
        """Send a command; its number (AgentLostError, NoAnswerError)."""
        number, content = self._channel.request(command)
        with self._failures(command, seconds):
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_sendall(self._socket, content)
        return number

    async def answer(self, numbers: set[int], command: str, seconds: float) -> Any:
        """Wait for the answer to any of these (AgentError), which are all the same command."""
        with self._failures(command, seconds):
            async with asyncio.timeout(seconds):
                while not (come := numbers & self._answers.keys()):
                    await self._receive()
        answer = self._answers.pop(min(come))
        if answer.error is not None:
            raise AgentRefusedError(f"the guest agent at {self.path} refuses {command}: {answer.error}", answer.error)
        return answer.value

    async def _receive(self) -> None:
        await asyncio.sleep(0)  # who never stops to talk shall not stop everything else
        await self._readable()
        try:
            content = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        if not content:
            raise ConnectionResetError
        for answer in self._channel.receive(content):
            self._answers[answer.number] = answer

    async def _readable(self) -> None:
        """Return when something has come. Not sock_recv(): a deadline at the same moment would lose what it took."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._socket, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            loop.remove_reader(self._socket)

    @contextlib.contextmanager
    def _failures(self, command: str, seconds: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise NoAnswerError(
                f"the guest agent at {self.path} does not answer {command} within {seconds:g} s"
            ) from None
        except OSError:
            raise AgentLostError(f"what listens at {self.path} ended the connection") from None

    def close(self) -> None:
        """Leave; a second time nothing happens."""
        self._socket.close()


def _connect(sock: socket.socket, path: str) -> bool:
    """Whether the socket is connected now (OSError); where others wait already, a Unix socket tells nobody when not."""
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True
