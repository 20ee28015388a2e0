"""An SQLite database without a filesystem: its files lie at fixed places of a disk that is reached over NBD.

SQLite's xSync becomes FLUSH, so what SQLite promises of a crash holds exactly if disk and backup keep their promises.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import apsw
from live.nbd_client import Nbd


class Place(NamedTuple):
    """Where a file lies: its size is kept in 8 bytes at ``meta``, its content begins at ``start``."""

    meta: int
    start: int


PLACES = {"": Place(0, 1 << 20), "-journal": Place(512, 8 << 20), "-wal": Place(1024, 12 << 20)}
"""By what SQLite appends to the database's name."""
DISK_SIZE = 24 << 20
SIZE = struct.Struct("<q")
NAME = "database"


class DiskFile:
    """One file. The content is written before the size that includes it, as a filesystem would."""

    def __init__(self, disk: Nbd, place: Place) -> None:
        self._disk, self._place = disk, place
        (self._size,) = SIZE.unpack(disk.read(place.meta, SIZE.size))

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - SQLite's names
        length = max(0, min(amount, self._size - offset))
        return self._disk.read(self._place.start + offset, length) if length else b""

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.write(self._place.start + offset, data)
        if offset + len(data) > self._size:
            self.xTruncate(offset + len(data))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._size = size
        self._disk.write(self._place.meta, SIZE.pack(size))

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.flush()

    def xFileSize(self) -> int:  # noqa: N802
        return self._size

    def xSectorSize(self) -> int:  # noqa: N802
        return 512

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return 0

    def xLock(self, level: int) -> None:  # noqa: N802
        """Nobody else has this disk."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """Nobody else has this disk."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:  # noqa: N802
        return False

    def xClose(self) -> None:  # noqa: N802
        """The disk stays open."""


class DiskVfs(apsw.VFS):
    """SQLite's view of the disk."""

    def __init__(self, disk: Nbd) -> None:
        super().__init__(f"disk{id(disk)}", "")
        self.name, self._disk = f"disk{id(disk)}", disk

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        meta = PLACES[pathname.removeprefix(NAME)].meta
        return SIZE.unpack(self._disk.read(meta, SIZE.size))[0] > 0

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self._disk.write(PLACES[filename.removeprefix(NAME)].meta, SIZE.pack(0))
        if syncdir:
            self._disk.flush()

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        filename = name.filename() if isinstance(name, apsw.URIFilename) else name
        assert filename is not None, "SQLite wants a temporary file"
        flags[1] = flags[0]
        return DiskFile(self._disk, PLACES[filename.removeprefix(NAME)])


def extract(image: bytes, folder: Path) -> Path:
    """Copy the files out of an image, as they were; the path of the database."""
    folder.mkdir()
    for suffix, (meta, start) in PLACES.items():
        (size,) = SIZE.unpack_from(image, meta)
        if size:
            (folder / f"{NAME}{suffix}").write_bytes(image[start : start + size])
    return folder / NAME
