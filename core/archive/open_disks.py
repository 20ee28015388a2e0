"""An archive opened as read-only disks: its drives at any place, a delta's too, from files or a store."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from pybackup.core.errors import ArchiveError, RequestError
from pybackup.core.places.kinds import ArchivePlace, LocalPath
from pybackup.formats.vma import Header

from .chain import ParentSearch, open_chain
from .drive import ArchiveDrive
from .held import hold
from .identity import ArchiveIdentity
from .open import has_ranges

READERS = 4
"""Threads that read and decode: more than one for each processor, for a store lets them wait."""


@dataclass(frozen=True, slots=True)
class ArchiveDisks:
    """The drives by their names, and who the archive is. stop() ends reads that wait, close() waits for those left."""

    identity: ArchiveIdentity
    drives: Mapping[str, ArchiveDrive]
    stop: Callable[[], None]
    close: Callable[[], Awaitable[None]]

    @property
    def header(self) -> Header:
        """What the archive says it holds."""
        return self.identity.header


def open_disks(
    place: ArchivePlace, search: ParentSearch | None = None, *, held: bool = False, reads_ahead: bool = False
) -> ArchiveDisks:
    """Open an archive (ArchiveError; RequestError for one that can only be read on).

    ``search``: what finds the parents of a delta. ``held``: nobody prunes it, or its ancestors, meanwhile.
    ``reads_ahead``: more may be read of it than is asked for.
    """
    if isinstance(place, LocalPath) and not os.path.exists(place.path):
        raise ArchiveError(f"cannot open {place}: {os.strerror(errno.ENOENT)}")
    if not has_ranges(place):
        raise RequestError(f"{place} can only be read from its beginning to its end: name a file, or a URL")
    with ExitStack() as stack:
        chain = stack.enter_context(open_chain(place, search, scan=True))
        for link in chain.links if held else ():
            if isinstance(link.place, LocalPath):
                stack.callback(os.close, hold(link.place.path, link.identity))
        threads = stack.enter_context(ThreadPoolExecutor(READERS, thread_name_prefix="pybackup-archive"))
        # Stopped before the threads are waited for, which a store that does not answer would keep.
        stack.callback(chain.stop)
        opened = stack.pop_all()
    drives = {
        info.name: ArchiveDrive(chain.view, info, threads, reads_ahead=reads_ahead) for info in chain.view.header.drives
    }

    async def close() -> None:
        for drive in drives.values():
            await drive.close()
        opened.close()

    return ArchiveDisks(chain.links[0].identity, drives, chain.stop, close)
