"""The client's end of a backup of a running server: clusters come in, and the server learns how the archive went.

Two connections: the control socket, where the request goes and the answer comes when all is over, and a socket pair of
our own, whose other end went with the request, for the clusters (see formats/cluster_wire.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

from pybackup.core.errors import PybackupError, SourceError
from pybackup.formats import cluster_wire as wire
from pybackup.formats.errors import FormatError

from .control_client import checked, connect, parse

BUFFERED = 4 << 20
"""Bytes received ahead; asyncio takes up to twice as many."""
LAST_ANSWER = 10.0
"""Seconds for the server to say that it knows of the archive, when that is complete anyway."""

_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ClusterReceiver:
    """One backup of a server's disks. Fixed: the path of the control socket, and both connections."""

    def __init__(self, path: str, control: _Stream, clusters: _Stream) -> None:
        self._path, self._control, self._clusters = path, control, clusters

    @classmethod
    async def begin(cls, path: str, request: dict[str, Any]) -> ClusterReceiver:
        """Ask the server at the control socket ``path`` for a backup (SourceError)."""
        control = connect(path)
        ours, theirs = socket.socketpair()
        try:
            line = json.dumps({"command": "backup", **request}).encode() + b"\n"
            socket.send_fds(control, [line], [theirs.fileno()])
        except OSError as error:
            control.close()
            ours.close()
            raise SourceError(f"the server at {path} does not answer: {error.strerror}") from error
        finally:
            theirs.close()
        clusters = await asyncio.open_connection(sock=ours, limit=BUFFERED)
        return cls(path, await asyncio.open_connection(sock=control, limit=BUFFERED), clusters)

    async def message(self) -> tuple[wire.Message, bytes]:
        """The next message and its content; what went wrong on the server's side, where it sends no more."""
        reader, _ = self._clusters
        try:
            message = wire.decode(await reader.readexactly(wire.MESSAGE.size))
            return message, await reader.readexactly(message.length)
        except (asyncio.IncompleteReadError, OSError):
            raise await self._failure() from None
        except FormatError as error:
            raise SourceError(error.what) from None

    def tell(self, stored: int, written: int) -> None:
        """Tell the server how many bytes of data the archive holds, and how many it has itself."""
        self._clusters[1].write(wire.PROGRESS.pack(wire.PROGRESS_MARK, stored, written))

    def answer(self, *, differs: bool) -> None:
        """Tell the server whether the sample that it has sent differs from the parent."""
        self._clusters[1].write(wire.ANSWER.pack(wire.ANSWER_MARK, differs))

    async def gone(self) -> PybackupError:
        """Return when the server gives up although it has sent all: cancelled, or stopped; with the reason."""
        with contextlib.suppress(OSError):
            await self._clusters[0].read(1)
        return await self._failure()

    async def _failure(self) -> PybackupError:
        """Why the stream of clusters has ended: the answer on the control socket says it."""
        try:
            checked(parse(await self._control[0].readline(), self._path))
        except PybackupError as error:
            return error
        except (OSError, ValueError):
            return SourceError(f"the server at {self._path} ended the connection")
        return SourceError(f"the server at {self._path} ended the backup too early")

    async def acknowledge(self, digest: bytes | None) -> None:
        """Tell the server that the archive is complete, and wait until it knows.

        ``digest``: of the archive's directory, by which a delta of it will know it, where the server wants that.
        """
        identity = b"" if digest is None else wire.IDENTITY.pack(wire.IDENTITY_MARK, digest)
        with contextlib.suppress(OSError, TimeoutError):
            self._clusters[1].write(identity + wire.ACKNOWLEDGEMENT)
            async with asyncio.timeout(LAST_ANSWER):
                await self._control[0].read(1)

    def give_up(self, reason: str) -> None:
        """Tell the server why there will be no archive."""
        self._clusters[1].write(reason.encode(errors="replace")[: wire.MAX_REASON])

    async def close(self) -> None:
        """Close both connections; the server sees whether it was told something before."""
        for _, writer in (self._clusters, self._control):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
