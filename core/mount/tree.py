"""What a mount shows: drives and configurations as files, and of a place each archive as a folder of them.

Nothing is opened before it is looked at. A node knows its attributes; a file gives bytes at any place. What goes wrong
is OSError: EIO for what is damaged or cannot be reached, ENOENT for what is not there.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pybackup.core.archive.chain import Chain
from pybackup.core.archive.identity import ArchiveIdentity
from pybackup.core.archive.listing import Listed, archives_in
from pybackup.core.archive.view import ArchiveView
from pybackup.core.endpoints.drive_names import file_name
from pybackup.core.errors import PybackupError
from pybackup.core.places.kinds import HistoryPlace, LocalPath, StoreUrl
from pybackup.formats.vma import DriveInfo
from pybackup.formats.vma_layout import BLOCK_SIZE, CLUSTER_SIZE

from .opened import OpenedArchives

LIST_SECONDS = 5.0
"""A place is looked through again when somebody looks at it after so long."""
SECTOR = 512
"""Bytes of a block as stat(2) counts them."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """Of a file or folder: ``mode`` as of stat(2), sizes in bytes, ``time`` in seconds since 1970."""

    mode: int
    size: int
    stored: int
    time: float


class Node(Protocol):
    """Anything that has a name in the tree."""

    def attributes(self) -> Attributes:
        """What stat(2) tells."""
        ...


class File(Node, Protocol):
    """Something that can be read."""

    def read(self, offset: int, size: int) -> bytes:
        """At most so many bytes: fewer, or none, at the end."""
        ...


class Folder(Node, Protocol):
    """Something that holds others."""

    def names(self) -> list[str]:
        """Of what it holds."""
        ...

    def child(self, name: str) -> Node:
        """What has that name."""
        ...


def _folder_attributes(at: float) -> Attributes:
    return Attributes(stat.S_IFDIR | 0o555, 0, 0, at)


def _as_os_error(error: PybackupError) -> OSError:
    return OSError(errno.EIO, str(error))


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration."""

    content: bytes
    created: int

    def attributes(self) -> Attributes:
        """Of a small file."""
        return Attributes(stat.S_IFREG | 0o444, len(self.content), len(self.content), self.created)

    def read(self, offset: int, size: int) -> bytes:
        """At most so many bytes."""
        return self.content[offset : offset + size]


@dataclass(frozen=True, slots=True)
class DriveFile:
    """A drive, as a raw file with holes."""

    view: ArchiveView
    drive: DriveInfo
    stored: int

    def attributes(self) -> Attributes:
        """What is stored tells how much of the drive is no hole."""
        return Attributes(stat.S_IFREG | 0o444, self.drive.size, self.stored, self.view.header.created)

    def read(self, offset: int, size: int) -> bytes:
        """At most so many bytes; damage is EIO."""
        end = min(self.drive.size, offset + size)
        parts: list[bytes] = []
        try:
            while offset < end:
                start = offset % CLUSTER_SIZE
                cluster = self.view.read_cluster(self.drive.drive_id, offset // CLUSTER_SIZE)
                parts.append(cluster[start : start + end - offset])
                offset += len(parts[-1])
        except PybackupError as error:
            raise _as_os_error(error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)


class ArchiveFolder:
    """What one archive holds. Fixed: the place. Changing: the files, made when somebody first looks, and of which
    archive they are: another one may lie there by the time that it is opened again."""

    def __init__(self, place: HistoryPlace, archives: OpenedArchives, modified: float, size: int = 0) -> None:
        """``modified``: seconds since 1970; ``size`` in bytes, where it is known."""
        self.place, self.version = place, (modified, size)
        self._archives, self._modified = archives, modified
        self._files: tuple[ArchiveIdentity | None, Mapping[str, Callable[[Chain], File]]] = None, {}

    def attributes(self) -> Attributes:
        """Without opening the archive."""
        return _folder_attributes(self._modified)

    def names(self) -> list[str]:
        """NAME.raw of each drive, and the names of the configurations."""
        with self._opened() as chain:
            return list(self._known(chain))

    def child(self, name: str) -> File:
        """A file, which can be read as long as the archive is open (ENOENT)."""
        with self._opened() as chain:
            made = self._known(chain).get(name)
            if made is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            return made(chain)

    def take(self) -> None:
        """Keep the archive open until give_back()."""
        try:
            self._archives.take(self.place)
        except PybackupError as error:
            raise _as_os_error(error) from error

    def give_back(self) -> None:
        """The archive need not be open any more."""
        self._archives.give_back(self.place)

    def _opened(self) -> _Opened:
        return _Opened(self)

    def _known(self, chain: Chain) -> Mapping[str, Callable[[Chain], File]]:
        identity = chain.links[0].identity
        # Other threads do the same meanwhile, perhaps of another archive: so both are one.
        whose, files = self._files
        if whose is None or (whose.uuid, whose.digest) != (identity.uuid, identity.digest):
            files = _files_of(chain)
            self._files = identity, files
        return files


class _Opened:
    """An archive folder's archive, within a body; ArchiveError becomes EIO."""

    def __init__(self, folder: ArchiveFolder) -> None:
        self._folder = folder

    def __enter__(self) -> Chain:
        try:
            return self._folder._archives.take(self._folder.place)  # noqa: SLF001 - its own other half
        except PybackupError as error:
            raise _as_os_error(error) from error

    def __exit__(self, *_: object) -> None:
        self._folder.give_back()


def _files_of(chain: Chain) -> dict[str, Callable[[Chain], File]]:
    """By their names; a configuration that is called as a drive's file is called otherwise."""
    header = chain.view.header
    files: dict[str, Callable[[Chain], File]] = {}
    stored = stored_in(chain.view)
    for drive in header.drives:
        files[f"{file_name(drive.name)}.raw"] = _drive_file(drive, stored[drive.drive_id])
    for name, content in header.configs:
        called = file_name(name)
        while called in files:
            called += "_"
        files[called] = _config_file(content, header.created)
    return files


def _drive_file(drive: DriveInfo, stored: int) -> Callable[[Chain], File]:
    return lambda chain: DriveFile(chain.view, drive, stored)


def _config_file(content: bytes, created: int) -> Callable[[Chain], File]:
    return lambda _: ConfigFile(content, created)


def stored_in(view: ArchiveView) -> dict[int, int]:
    """For each drive about how many bytes are no zeros: of a chain what all its archives hold, at most the size."""
    found = {}
    for drive in view.header.drives:
        told = sum(_told_stored(layer.archive.directory.about, layer.drive_id) for layer in view.layers(drive.drive_id))
        found[drive.drive_id] = min(told, -(-drive.size // BLOCK_SIZE) * BLOCK_SIZE)
    return found


def _told_stored(about: Mapping[str, object], drive_id: int) -> int:
    told = about.get("drives")
    for one in told if isinstance(told, list) else []:
        if isinstance(one, dict) and one.get("id") == drive_id:
            stored = one.get("stored_bytes")
            return stored if isinstance(stored, int) and 0 <= stored < 1 << 60 else 0
    return 0


class PlaceFolder:
    """The archives of a folder or prefix, each as a folder. Changing, under a lock: what was found there, and when."""

    def __init__(self, place: HistoryPlace, archives: OpenedArchives) -> None:
        self._place, self._archives = place, archives
        self._lock = threading.Lock()
        self._listed: dict[str, ArchiveFolder] = {}
        self._looked: float | None = None

    def attributes(self) -> Attributes:
        """Of the folder that holds all."""
        return _folder_attributes(time.time())

    def names(self) -> list[str]:
        """The archives' names."""
        return list(self._look())

    def child(self, name: str) -> ArchiveFolder:
        """An archive (ENOENT)."""
        found = self._look().get(name)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found

    def _look(self) -> dict[str, ArchiveFolder]:
        with self._lock:
            if self._looked is None or time.monotonic() - self._looked > LIST_SECONDS:
                try:
                    # A link may lead into the mount, and who asked us would wait for us, and we for them.
                    listed = archives_in(self._place, links=False)
                except PybackupError as error:
                    raise _as_os_error(error) from error
                self._listed = {one.name: self._folder(one) for one in listed}
                self._looked = time.monotonic()
            return self._listed

    def _folder(self, one: Listed) -> ArchiveFolder:
        known = self._listed.get(one.name)
        made = ArchiveFolder(one.place, self._archives, one.modified or 0.0, one.size)
        if known is None or known.version == made.version:
            return known or made
        self._archives.forget(one.place)
        return made


def root_of(place: HistoryPlace, archives: OpenedArchives) -> Folder:
    """The tree of a folder or prefix of archives, or of one archive, which is opened now (ArchiveError)."""
    if isinstance(place, LocalPath) and os.path.isdir(place.path):
        return PlaceFolder(place, archives)
    if isinstance(place, StoreUrl) and (place.url.endswith("/") or place.url.count("/") == 2):
        return PlaceFolder(place, archives)
    archives.take(place)
    modified = os.stat(place.path).st_mtime if isinstance(place, LocalPath) else time.time()
    return ArchiveFolder(place, archives, modified)


def node_at(root: Folder, path: str) -> tuple[Node, ArchiveFolder | None]:
    """What lies at a path of the tree, and the archive that it belongs to (OSError)."""
    node: Node = root
    archive = root if isinstance(root, ArchiveFolder) else None
    for name in filter(None, path.split("/")):
        if not isinstance(node, PlaceFolder | ArchiveFolder):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        node = node.child(name)
        archive = node if isinstance(node, ArchiveFolder) else archive
    return node, archive
