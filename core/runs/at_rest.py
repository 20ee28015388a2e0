"""The backup of disks that nobody uses, or of which a snapshot is made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from pybackup.core.endpoints.drive_names import NamedPlace, origin_of, source_label, unique_drive_names
from pybackup.core.endpoints.sources import OpenSource, SourceOptions, open_source
from pybackup.core.jobs.backup import BackupJob
from pybackup.core.jobs.copying import Drive
from pybackup.core.places.kinds import DiskPlace, SourcePlace

from .course import Parts
from .listener import Listener


class DisksAtRest:
    """A Way: each source is opened, and read under a lock or from a snapshot.

    Fixed: the sources. Changing: those that are open.
    """

    def __init__(self, sources: Sequence[NamedPlace[DiskPlace]], options: SourceOptions) -> None:
        self._sources, self._options = sources, options
        self._opened: list[OpenSource] = []

    @property
    def paths(self) -> Sequence[SourcePlace]:
        """The sources."""
        return [source.what for source in self._sources]

    async def find(self, stack: AsyncExitStack, listener: Listener) -> Sequence[str]:
        """The names given, or made of the sources' (RequestError)."""
        return unique_drive_names(self._sources)

    def origins(self) -> dict[str, str]:
        """By the paths of the disks."""
        names = unique_drive_names(self._sources)
        return {name: origin_of(name, source.what) for name, source in zip(names, self._sources, strict=True)}

    async def open(self, stack: AsyncExitStack, listener: Listener) -> Sequence[tuple[str, int]]:
        """Open every source (SourceError, BusyError, RequestError)."""
        for source in self._sources:
            one = await open_source(source.what, self._options)
            stack.push_async_callback(one.close)
            self._opened.append(one)
            listener.tell(one.warnings, one.notes)
        names = unique_drive_names(self._sources)
        return [(name, one.device.size) for name, one in zip(names, self._opened, strict=True)]

    def configs(self, given: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        """Those given."""
        return given

    def job(self, parts: Parts) -> BackupJob:
        """What reads the sources."""
        request = parts.request
        return BackupJob(
            [
                Drive(number, name, one.device, one.check, one.allocated, way=parts.choice.way_of(name))
                for number, (name, one) in enumerate(
                    zip(unique_drive_names(self._sources), self._opened, strict=True), 1
                )
            ],
            parts.writer,
            parts.scanners,
            about=self._about(parts),
            skip_unreadable=request.skip_unreadable,
            before_commit=parts.before_commit,
            speed=request.speed,
            trace=parts.trace,
        )

    def _about(self, parts: Parts) -> dict[str, Any]:
        sources = zip(self._sources, self._opened, strict=True)
        return {
            "tool": parts.request.tool,
            "created": parts.request.options.created,
            "sources": [{"name": source_label(source.what), "kind": one.kind} for source, one in sources],
        }
