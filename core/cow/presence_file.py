"""The record of what is there of a disk that is being restored, in a file beside it (formats/restoring_map.py).

It is appended to, and written anew when it has become long; a new one takes the old one's name when it is durable.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from bitarray import bitarray

from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.errors import PybackupError, SourceError, TargetError
from pybackup.core.sinks.target_failure import target_failure
from pybackup.core.system import disk_identity
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.core.system.file_io import read_fully, write_fully
from pybackup.formats.errors import FormatError
from pybackup.formats.restoring_map import (
    FILE,
    HEADER_SIZE,
    MOST_RUNS,
    PIECE_CLUSTERS,
    PIECE_SIZE,
    RUNS_FOR_A_PIECE,
    Presence,
    RestoringHeader,
    decode_header,
    encode_header,
    encode_record,
    in_records,
    records,
)

from .sparse_bits import SparseBits

SUFFIX = ".restoring"
"""Of a map's name, behind that of the disk."""
LONG = 1 << 20
"""Bytes that a map may have without being written anew; and then four times what it had when it was new."""
_NEW = ".new"


class PresenceFile:
    """The map of one disk, open; made by create() or open(). A PresenceRecord.

    Fixed: path, header, and what ``before_removed`` and ``when_removed`` do then. Changing: the descriptor, where the
    next record goes, its number, how long the file may get, and whether its name is durable; by one call at a time.
    """

    def __init__(self, path: str, fd: int, header: RestoringHeader, executor: ThreadPoolExecutor | None = None) -> None:
        """``fd`` belongs to it from now on. ``executor``: see BlockingCalls."""
        self.path, self.header = path, header
        self._fd = fd
        self._at, self._number, self._long = HEADER_SIZE, 0, LONG
        self._has_lasting_name = True
        self.before_removed: Callable[[], object] = lambda: None
        self.when_removed: Callable[[], object] = lambda: None
        self._calls = BlockingCalls(executor, threads=1)

    def fileno(self) -> int:
        """The open descriptor, for questions to the kernel."""
        return self._fd

    @property
    def _map_id(self) -> bytes:
        return bytes.fromhex(self.header.map_id)

    @classmethod
    def create(cls, path: str, header: RestoringHeader, executor: ThreadPoolExecutor | None = None) -> PresenceFile:
        """A new map, durable, of which nothing is there (TargetError; also where the file exists)."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise target_failure(path, error, "create") from error
        try:
            write_fully(fd, 0, encode_header(header))
            os.fsync(fd)
            _sync_folder(path)
        except BaseException as error:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(path)
            if isinstance(error, OSError):
                raise target_failure(path, error, "write") from error
            raise
        return cls(path, fd, header, executor)

    @classmethod
    def open(cls, path: str, executor: ThreadPoolExecutor | None = None) -> PresenceFile | None:
        """The map at a path; None where there is none (TargetError where it is none, or damaged)."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise target_failure(path, error, "open") from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise TargetError(f"{path} is no regular file")
            return cls(path, fd, decode_header(read_fully(fd, 0, HEADER_SIZE)), executor)
        except (OSError, FormatError) as error:
            os.close(fd)
            raise TargetError(f"cannot use {path}: {error}") from error
        except BaseException:
            os.close(fd)
            raise

    def is_current(self) -> bool:
        """Whether the file that was opened still is the one under its name: whoever wrote it meanwhile made another."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self.path))
        except OSError:
            return False

    def there(self) -> Iterator[tuple[int, int]]:
        """Runs of clusters (first, count) that are there, after open() (TargetError); up to a torn record."""
        try:
            size = os.fstat(self._fd).st_size
            clusters = -(-self.header.size // CLUSTER_SIZE)
            for behind, presence in records(partial(read_fully, self._fd), size, self._map_id, clusters):
                self._at, self._number = behind, self._number + 1
                yield from presence.runs
                for number, bits in presence.pieces:
                    yield from _runs_of(number, bits, clusters)
            os.ftruncate(self._fd, self._at)
        except FormatError as error:
            raise TargetError(f"{self.path} is damaged, and what it told of is lost: {error}") from error
        except OSError as error:
            raise target_failure(self.path, error, "read") from error

    # -- what is there --

    @property
    def wants_all(self) -> bool:
        """Whether it has become long."""
        return self._at > self._long

    async def add(self, runs: Sequence[tuple[int, int]]) -> None:
        """Append (OSError)."""
        await self._calls.run(self._add, runs)

    def _add(self, runs: Sequence[tuple[int, int]]) -> None:
        self._keep_name()
        for at in range(0, len(runs), MOST_RUNS):
            self._append(Presence(runs[at : at + MOST_RUNS]))

    def _append(self, presence: Presence) -> None:
        record = encode_record(self._map_id, self._number, presence)
        try:
            write_fully(self._fd, self._at, record)
            os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._at)
            raise
        self._at += len(record)
        self._number += 1

    async def replace(self, absent: bitarray | SparseBits) -> None:
        """Write a new file (OSError), which takes the old one's place when it is durable."""
        await self._calls.run(self._replace, absent)

    def _replace(self, absent: bitarray | SparseBits) -> None:
        new = self.path + _NEW
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            at, number = HEADER_SIZE, 0
            write_fully(fd, 0, encode_header(self.header))
            for presence in in_records(_presence_of(absent)):
                record = encode_record(self._map_id, number, presence)
                write_fully(fd, at, record)
                at, number = at + len(record), number + 1
            os.fsync(fd)
            os.rename(new, self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise
        os.close(self._fd)
        # A power failure may bring the old file back, which tells less: nobody has been told of more until now.
        self._fd, self._at, self._number, self._long = fd, at, number, max(LONG, 4 * at)
        self._has_lasting_name = False
        self._keep_name()

    def _keep_name(self) -> None:
        """Make the name of a new file durable, where that failed before too: nothing in it counts without."""
        if not self._has_lasting_name:
            _sync_folder(self.path)
            self._has_lasting_name = True

    # -- the end --

    async def remove(self) -> None:
        """All is there: remove the file, durably (OSError); that of a block device stays, and says so.

        A file that is there is never replaced by a live restore. A block device always is there: if nothing told that
        it was restored, the same command would begin anew, over what guests have written since.
        """
        if self.header.kind == FILE:
            await self._calls.run(self.remove_now)
        else:
            self.close_unused()

    def remove_now(self) -> None:
        """Remove the file, durably (OSError), whatever it says; not one that somebody else made meanwhile."""
        self.before_removed()
        if self.is_current():
            os.unlink(self.path)
        with contextlib.suppress(OSError):
            os.unlink(self.path + _NEW)  # left where one was killed while it was written
        _sync_folder(self.path)
        self.close_unused()
        self.when_removed()

    async def close(self) -> None:
        """Leave it as it is."""
        await self._calls.close()
        self.close_unused()

    def close_unused(self) -> None:
        """Close what nobody writes to; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def refuse_incomplete(path: str, failure: type[PybackupError] = SourceError) -> None:
    """Refuse a disk beside which a map lies (``failure``): not all of it is there."""
    map_path = os.path.realpath(path) + SUFFIX
    if os.path.lexists(map_path):
        raise failure(f"{path} is incomplete: it is being restored, and {map_path} tells what of it is there")
    if disk_identity.tells_incomplete(path):
        raise failure(f"{path} is incomplete: it is being restored, and a map elsewhere tells what of it is there")


def _presence_of(absent: bitarray | SparseBits) -> Iterator[tuple[int, int] | tuple[int, bytes]]:
    """What is there, where the clear bits are: in runs, and in pieces where these are shorter."""
    clusters = len(absent)
    run = (0, 0)
    for number in range(-(-clusters // PIECE_CLUSTERS)):
        first = number * PIECE_CLUSTERS
        bits = ~absent[first : min(clusters, first + PIECE_CLUSTERS)]
        if bits.all():
            run = (run[0], run[1] + len(bits)) if sum(run) == first and run[1] else (first, len(bits))
            continue
        if run[1]:
            yield run
            run = (0, 0)
        found = list(_runs_in(bits, first, RUNS_FOR_A_PIECE + 1))
        if len(found) > RUNS_FOR_A_PIECE:
            yield number, bits.tobytes().ljust(PIECE_SIZE, b"\0")
        else:
            yield from found
    if run[1]:
        yield run


def _runs_in(bits: bitarray, first: int, most: int | None = None) -> Iterator[tuple[int, int]]:
    """The runs of set bits, at most so many, counted from ``first``."""
    at = 0
    while most != 0 and (at := bits.find(True, at)) >= 0:
        end = bits.find(False, at)
        end = len(bits) if end < 0 else end
        yield first + at, end - at
        at = end
        most = None if most is None else most - 1


def _runs_of(number: int, piece: bytes, clusters: int) -> Iterator[tuple[int, int]]:
    bits = bitarray(endian="big")
    bits.frombytes(piece)
    first = number * PIECE_CLUSTERS
    yield from _runs_in(bits[: clusters - first], first)


def _sync_folder(path: str) -> None:
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a filesystem that knows no such thing
            raise
    finally:
        os.close(fd)
