"""The server's end of a backup whose archive another process writes: clusters go out as they are.

Looking for zeros, digests, compression and writing all happen there, so that they never hold up a guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pybackup.core.archive.intake import Piece, Prepared
from pybackup.core.device import CLUSTER_SIZE, Buffer
from pybackup.core.errors import TargetError
from pybackup.formats import cluster_wire as wire
from pybackup.formats.cluster_index import DriveCounts

SEND_BUFFER = 4 << 20


class ClusterSender:
    """Sends clusters through a socket.

    Fixed: the socket, which belongs to the sender, and whether the archive's identity is of use. Changing: what the
    other end has said.
    """

    def __init__(self, sock: socket.socket, *, takes_identity: bool = False) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._sock = sock
        self._takes_identity = takes_identity
        self._turn, self._sampling = asyncio.Lock(), asyncio.Lock()
        self._replies = wire.Replies()
        self._heard, self._has_answered = asyncio.Event(), asyncio.Event()
        self._listening = False

    @property
    def written(self) -> int:
        """Bytes of the archive, as the other end tells."""
        return self._replies.written

    @property
    def stored(self) -> int | None:
        """Bytes of data in the archive, as the other end tells."""
        return self._replies.stored

    @property
    def counts(self) -> dict[int, DriveCounts]:
        """Not known here."""
        return {}

    @property
    def digest(self) -> bytes | None:
        """Of the archive's directory, as the other end tells; None where no delta of it can be made."""
        return self._replies.digest

    async def start(self) -> None:
        """Listen to whoever asked, who has everything ready."""
        self._listening = True
        asyncio.get_running_loop().add_reader(self._sock, self._receive)

    async def prepare(self, pieces: Sequence[Piece], pool: ThreadPoolExecutor) -> Sequence[Prepared]:
        """Nothing to do."""
        return [Prepared(piece.content, None) for piece in pieces]

    async def take(self, drive_id: int, first: int, prepared: Prepared) -> None:
        """Send clusters."""
        size = len(prepared.content)
        message = wire.Message(wire.DATA, drive_id, first, -(-size // CLUSTER_SIZE), size)
        await self._send(message, prepared.content)

    async def put_zeros(self, drive_id: int, first: int, count: int) -> int:
        """Tell of zero clusters."""
        await self._send(wire.Message(wire.ZEROS, drive_id, first, count, 0), b"")
        return count

    async def put_unchanged(self, drive_id: int, first: int, count: int) -> None:
        """Tell of clusters that are as the parent has them."""
        await self._send(wire.Message(wire.UNCHANGED, drive_id, first, count, 0), b"")

    async def differs(self, piece: Piece) -> bool:
        """Ask the other end, which has the parent."""
        size = len(piece.content)
        message = wire.Message(wire.SAMPLE, piece.drive_id, piece.first, -(-size // CLUSTER_SIZE), size)
        async with self._sampling:
            self._replies.answer = None
            await self._send(message, piece.content)
            while self._replies.answer is None:
                if self._has_answered.is_set():
                    raise self.reason()
                self._heard.clear()
                await self._heard.wait()
            return self._replies.answer

    async def drain(self) -> None:
        """Nothing is kept here."""

    async def finish(self, about: dict[str, Any]) -> None:
        """Send the end."""
        told = {**about, wire.TAKES_IDENTITY: True} if self._takes_identity else about
        text = json.dumps(told).encode()
        await self._send(wire.Message(wire.END, 0, 0, 0, len(text)), text)

    async def _send(self, message: wire.Message, content: Buffer) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._turn:
                sent = self._send_now([message.encode(), content])
                rest = wire.MESSAGE.size + len(content) - sent
                if rest:
                    if sent < wire.MESSAGE.size:
                        await loop.sock_sendall(self._sock, message.encode()[sent:])
                        rest = len(content)
                    await loop.sock_sendall(self._sock, memoryview(content)[len(content) - rest :])
        except OSError as error:
            raise self.reason() from error

    def _send_now(self, buffers: list[Buffer]) -> int:
        try:
            return self._sock.sendmsg(buffers)
        except BlockingIOError:
            return 0

    def _receive(self) -> None:
        """Take what the other end says, until it has said its last."""
        try:
            data = self._sock.recv(wire.MAX_REASON)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._replies.feed(data)
        last = self._replies.last
        if not data or len(last) >= wire.MAX_REASON:
            self._listen_no_more()
        if not data or last:
            self._has_answered.set()
        self._heard.set()

    def _listen_no_more(self) -> None:
        if self._listening:
            self._listening = False
            asyncio.get_running_loop().remove_reader(self._sock)

    async def commit(self) -> None:
        """Wait until the other end says that the archive is complete."""
        await self._has_answered.wait()
        if self._replies.last[:1] != wire.ACKNOWLEDGEMENT:
            raise self.reason()
        self._close()

    def reason(self) -> TargetError:
        """Why the other end gave up, as far as it has said."""
        if self._listening:
            self._receive()
        return _gone(self._replies.last.decode(errors="replace"))

    async def abort(self) -> None:
        """Close, also a second time; the other end sees that the end is missing."""
        self._close()

    def _close(self) -> None:
        self._listen_no_more()
        with contextlib.suppress(OSError):
            self._sock.close()


def _gone(why: str) -> TargetError:
    return TargetError(
        f"whoever asked for the backup gave up: {why}" if why else "whoever asked for the backup has gone"
    )
