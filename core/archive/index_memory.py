"""What a machine remembers of archives that it made and cannot read: their indexes, so that it can go on from them.

For each there is a file that only the user can read, with the bytes of the archive that are its header and its index,
where they lie in it, and by what the archive's file is known again: the header of its encryption, of which no other
file has the same, and its size. No data is in it: of each cluster a digest of 16 bytes, and where it lies.

    the archive's bytes, piece by piece; JSON; the length of that, the CRC-32 of both, and a magic, 20 bytes

Damage is found before anything of it is used: what is not as it was written is not remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pybackup.core.device import Buffer
from pybackup.core.errors import NoKeyError
from pybackup.core.secrets.encrypting_sink import EncryptingSink
from pybackup.core.system.file_io import read_fully, write_fully
from pybackup.core.system.state_folder import state_folder

END = struct.Struct("<QI8s")
MAGIC = b"pybkidx2"
READ_AT_ONCE = 1 << 20
MAX_TOLD = 64 << 20
"""Bytes of the JSON: some millions of pieces."""
ENDING, PARTIAL = ".index", ".partial"


class IndexMemory:
    """Takes the index of one archive while it is written.

    Fixed: the sink, and where the archive goes. Changing, by the one who writes: the file, and which pieces are in it.
    What cannot be remembered is no failure of a backup: ``problem`` says why, and the next one will be a full one.
    """

    def __init__(self, sink: EncryptingSink, place: str, is_local: bool, folder: str | None = None) -> None:
        """``place``: the archive's name, without secrets. Nothing is made yet."""
        self.problem: str | None = None
        self._sink, self._place, self._is_local = sink, os.path.abspath(place) if is_local else place, is_local
        self._folder = folder or state_folder("indexes")
        self._pieces: list[tuple[int, int]] = []
        self._size = self._crc = 0
        self._fd = -1
        self._path = ""

    def note(self, offset: int, content: Buffer) -> None:
        """Bytes of the archive that are no data, in order."""
        if self.problem is not None:
            return
        try:
            if self._fd < 0:
                self._begin()
            write_fully(self._fd, self._size, content)
            self._size += len(content)
            self._crc = zlib.crc32(content, self._crc)
            self._pieces.append((offset, len(content)))
        except OSError as error:
            self.problem = f"{self._folder}: {error.strerror}"

    def _begin(self) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        _forget_what_has_gone(self._folder)
        self._path = os.path.join(self._folder, f"{os.getpid()}-{os.urandom(6).hex()}{PARTIAL}")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def keep(self, size: int) -> None:
        """The archive is complete, ``size`` bytes, and has its name."""
        if self.problem is None and self._fd >= 0:
            told = {
                "place": self._place,
                "local": self._is_local,
                "size": size,
                "file_size": self._sink.size,
                "pieces": self._pieces,
            }
            text = json.dumps(told, separators=(",", ":")).encode()
            try:
                write_fully(self._fd, self._size, text + END.pack(len(text), zlib.crc32(text, self._crc), MAGIC))
                os.fsync(self._fd)
                own = self._sink.mark.hex() + ENDING
                os.rename(self._path, os.path.join(self._folder, own))
                self._path = ""
                with contextlib.suppress(OSError):
                    _forget(self._folder, lambda entry: entry.name != own and _place_in(entry.path) == self._place)
            except OSError as error:
                self.problem = f"{self._folder}: {error.strerror}"
        self.drop()

    def drop(self) -> None:
        """There will be no archive, or nothing more is to be done."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self._path = ""


def _forget_what_has_gone(folder: str) -> None:
    """Remove the indexes of archives that are here no more, and what killed runs have left."""
    _forget(folder, lambda entry: _is_left_over(entry.name) or (entry.name.endswith(ENDING) and _has_gone(entry.path)))


def _forget(folder: str, is_needless: Callable[[os.DirEntry[str]], bool]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if is_needless(entry):
                    os.unlink(entry.path)


def forget_all_but(place: str, there: Collection[str], before: float, folder: str | None = None) -> None:
    """Remove the indexes of archives of a place in a store, but of those that are there; named without secrets.

    ``there``: their names, as the place told after ``before``, seconds since 1970: what was kept later is not among
    them.
    """

    def has_gone(entry: os.DirEntry[str]) -> bool:
        archive = _place_in(entry.path) if entry.stat().st_mtime < before else None
        return archive is not None and archive.rpartition("/")[0] == place.rstrip("/") and archive not in there

    with contextlib.suppress(OSError):
        _forget(folder or state_folder("indexes"), has_gone)


def _place_in(path: str) -> str | None:
    """The archive whose index a file holds; None where it is none, or holds nobody's (OSError)."""
    place = (_told_at(path) or {}).get("place") if path.endswith(ENDING) else None
    return place if isinstance(place, str) else None


def _is_left_over(name: str) -> bool:
    return name.endswith(PARTIAL) and not os.path.exists(f"/proc/{name.partition('-')[0]}")


def _has_gone(path: str) -> bool:
    if (told := _told_at(path)) is None:
        return True
    place = told.get("place")
    # A folder that is not there may be one that is not mounted today.
    is_here = isinstance(place, str) and os.path.isdir(os.path.dirname(place))
    return bool(told.get("local")) and is_here and not os.path.lexists(str(place))


def _told_at(path: str) -> dict[str, Any] | None:
    """The JSON of such a file; None where it is none (OSError)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return _told(fd)
    finally:
        os.close(fd)


def _told(fd: int) -> dict[str, Any] | None:
    """The JSON of such a file; None where it is none."""
    size = os.fstat(fd).st_size
    if size < END.size:
        return None
    length, _, magic = END.unpack(read_fully(fd, size - END.size, END.size))
    if magic != MAGIC or not 0 < length <= min(MAX_TOLD, size - END.size):
        return None
    try:
        told = json.loads(read_fully(fd, size - END.size - length, length))
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


class Remembered(NamedTuple):
    """How to read what is remembered of an archive: pread() as of a RangeReader, and the archive's size in bytes."""

    pread: Callable[[int, int], bytes]
    size: int


@contextmanager
def remembered(mark: bytes, file_size: int, name: str, folder: str | None = None) -> Iterator[Remembered | None]:
    """What is remembered of the archive whose file has that mark and that size; None where nothing is.

    Whoever reads anything but its header and its index is told that there is no key (NoKeyError).
    """
    path = os.path.join(folder or state_folder("indexes"), mark.hex() + ENDING)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        found = None
        with contextlib.suppress(OSError):
            found = _opened(fd, file_size, name)
        yield found
    finally:
        os.close(fd)


def _opened(fd: int, file_size: int, name: str) -> Remembered | None:
    told = _told(fd)
    if (
        told is None
        or not _is_as_written(fd)
        or told.get("file_size") != file_size
        or not isinstance(told.get("size"), int)
    ):
        return None
    pieces = told.get("pieces")
    if not isinstance(pieces, list) or not all(_is_piece(one) for one in pieces):
        return None
    return Remembered(_Pieces(fd, pieces, name).pread, told["size"])


def _is_as_written(fd: int) -> bool:
    """Whether nothing of such a file was damaged, and it is ours: what others wrote would make wrong deltas."""
    found = os.fstat(fd)
    if found.st_uid not in (0, os.geteuid()):
        return False
    crc, end = 0, found.st_size - END.size
    for at in range(0, end, READ_AT_ONCE):
        crc = zlib.crc32(read_fully(fd, at, min(READ_AT_ONCE, end - at)), crc)
    _, kept, _ = END.unpack(read_fully(fd, end, END.size))
    return bool(crc == kept)


def _is_piece(told: object) -> bool:
    return isinstance(told, list) and len(told) == 2 and all(isinstance(one, int) and one >= 0 for one in told)


class _Pieces:
    """Fixed: the file, and where in the archive each of its pieces lies."""

    def __init__(self, fd: int, pieces: Sequence[Sequence[int]], name: str) -> None:
        self._fd, self._name = fd, name
        self._starts: list[int] = []
        self._rows: list[tuple[int, int, int]] = []
        place = 0
        for offset, length in pieces:
            last = self._rows[-1] if self._rows else None
            if last is not None and last[0] + last[1] == offset:
                self._rows[-1] = (last[0], last[1] + length, last[2])
            else:
                self._starts.append(offset)
                self._rows.append((offset, length, place))
            place += length

    def pread(self, offset: int, length: int) -> bytes:
        """These bytes of the archive; at its beginning fewer, where less is known (OSError, NoKeyError)."""
        number = bisect_right(self._starts, offset) - 1
        start, size, place = self._rows[number] if number >= 0 else (0, 0, 0)
        known = start + size - offset
        if known < length and (offset or known <= 0):
            raise NoKeyError(f"{self._name} is encrypted, and only its index is remembered here")
        content = read_fully(self._fd, place + offset - start, min(known, length))
        # Whoever reads the header reads some bytes more, and looks at none of them.
        return content + bytes(length - len(content))


class _Wanted:
    """Changing: whether what is remembered may stand for an archive that nobody here can read."""

    is_allowed = False


@contextmanager
def going_by_memory() -> Iterator[None]:
    """Within the body, what is remembered of archives is read where there is no key for them."""
    _Wanted.is_allowed = True
    try:
        yield
    finally:
        _Wanted.is_allowed = False


def goes_by_memory() -> bool:
    """Whether that is so."""
    return _Wanted.is_allowed
