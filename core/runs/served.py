"""The backup of a running server's disks: it sends the clusters, the archive is made here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Any

from pybackup.core.endpoints.drive_names import origin_of
from pybackup.core.live.client import RemoteBackup, served_drives
from pybackup.core.places.kinds import RunningServer, SourcePlace

from .course import Parts
from .listener import Listener

MOST_NAMES = 256
"""Archives that the parent was merged from, by whose digests the server may know it: a request has a bound."""


class ServedDisks:
    """A Way: all disks of the server that listens on a control socket.

    Fixed: its path, and the drives, which it is asked for at once: not in an event loop, whose handlers of signals
    would wait for a server that does not answer (SourceError, BusyError).
    """

    def __init__(self, server: RunningServer) -> None:
        self._path = server.control
        self._drives = served_drives(server.control)

    @property
    def paths(self) -> Sequence[SourcePlace]:
        """Nothing that an archive could replace."""
        return ()

    async def find(self, stack: AsyncExitStack, listener: Listener) -> Sequence[str]:
        """The names that the server has given them."""
        return [name for name, _ in self._drives]

    def origins(self) -> dict[str, str]:
        """By the control socket, and the names that the server has given the disks."""
        return {name: origin_of(name, RunningServer(self._path), name) for name, _ in self._drives}

    async def open(self, stack: AsyncExitStack, listener: Listener) -> Sequence[tuple[str, int]]:
        """Nothing to do: the server has them open."""
        return self._drives

    def configs(self, given: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        """Those given."""
        return given

    def job(self, parts: Parts) -> RemoteBackup:
        """What receives the clusters."""
        return RemoteBackup(
            self._path,
            _asked(parts),
            self._drives,
            parts.writer,
            parts.scanners,
            ways={name: parts.choice.way_of(name) for name, _ in self._drives},
            before_commit=parts.before_commit,
            trace=parts.trace,
        )


def _asked(parts: Parts) -> dict[str, Any]:
    """What the server is asked for: see pybackup-control(7)."""
    request, parent = parts.request, parts.choice.parent
    asked: dict[str, Any] = {
        "speed": request.speed,
        "skip_unreadable": request.skip_unreadable,
        "uuid": request.options.uuid.hex(),
    }
    if parent is not None and parent.identity.digest is not None:
        names = [parent.identity.digest, *islice(parent.identity.replaces, MOST_NAMES)]
        asked["base"] = {"uuid": parent.identity.uuid.hex(), "digests": [name.hex() for name in names]}
    return asked
