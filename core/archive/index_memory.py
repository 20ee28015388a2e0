"""What a machine remembers of archives that it made and cannot read: their indexes, so that it can go on from them.

For each there is a file that only the user can read, with the bytes of the archive that are its header and its index,
where they lie in it, and by what the archive's file is known again: the header of its encryption, of which no other
file has the same, and its size. No data is in it: of each cluster a digest of 16 bytes, and where it lies.

    the archive's bytes, piece by piece; JSON; the length of that and a magic, 16 bytes
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pybackup.core.device import Buffer
from pybackup.core.errors import NoKeyError
from pybackup.core.secrets.encrypting_sink import EncryptingSink
from pybackup.core.system.file_io import read_fully, write_fully
from pybackup.core.system.state_folder import state_folder

END = struct.Struct("<Q8s")
MAGIC = b"pybkidx1"
MAX_TOLD = 64 << 20
"""Bytes of the JSON: some millions of pieces."""
ENDING, PARTIAL = ".index", ".partial"


class IndexMemory:
    """Takes the index of one archive while it is written.

    Fixed: the sink, and where the archive goes. Changing, by the one who writes: the file, and which pieces are in it.
    What cannot be remembered is no failure of a backup: ``problem`` says why, and the next one will be a full one.
    """

    def __init__(self, sink: EncryptingSink, place: str, is_local: bool, folder: str | None = None) -> None:
        """``place``: the archive's name. Nothing is made yet."""
        self.problem: str | None = None
        self._sink, self._place, self._is_local = sink, os.path.abspath(place) if is_local else place, is_local
        self._folder = folder or state_folder("indexes")
        self._pieces: list[tuple[int, int]] = []
        self._size = 0
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
                write_fully(self._fd, self._size, text + END.pack(len(text), MAGIC))
                os.fsync(self._fd)
                os.rename(self._path, os.path.join(self._folder, self._sink.mark.hex() + ENDING))
                self._path = ""
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
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if _is_left_over(entry.name) or (entry.name.endswith(ENDING) and _has_gone(entry.path)):
                    os.unlink(entry.path)


def _is_left_over(name: str) -> bool:
    return name.endswith(PARTIAL) and not os.path.exists(f"/proc/{name.partition('-')[0]}")


def _has_gone(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        told = _told(fd)
    finally:
        os.close(fd)
    if told is None:
        return True
    place = told.get("place")
    # A folder that is not there may be one that is not mounted today.
    is_here = isinstance(place, str) and os.path.isdir(os.path.dirname(place))
    return bool(told.get("local")) and is_here and not os.path.lexists(str(place))


def _told(fd: int) -> dict[str, Any] | None:
    """The JSON of such a file; None where it is none."""
    size = os.fstat(fd).st_size
    if size < END.size:
        return None
    length, magic = END.unpack(read_fully(fd, size - END.size, END.size))
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
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        yield _opened(fd, file_size, name)
    finally:
        os.close(fd)


def _opened(fd: int, file_size: int, name: str) -> Remembered | None:
    told = _told(fd)
    if told is None or told.get("file_size") != file_size or not isinstance(told.get("size"), int):
        return None
    pieces = told.get("pieces")
    if not isinstance(pieces, list) or not all(_is_piece(one) for one in pieces):
        return None
    return Remembered(_Pieces(fd, pieces, name).pread, told["size"])


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
