"""Opens an archive where it lies: in a file, at a URL, or in what comes through the standard input."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from io import FileIO
from typing import NamedTuple, TypeGuard

from pybackup.core.devices.unreadable import BLOCK
from pybackup.core.errors import ArchiveError, RequestError
from pybackup.core.places.kinds import ArchivePlace, LocalPath, StandardStream, StoreUrl
from pybackup.core.system.pipe_reader import PipeReader

from .read_ahead import ReadAhead
from .stream import ArchiveStream, Digests


class ArchiveReader(NamedTuple):
    """How to read on in an archive: read(at_most) gives bytes, or none at the end; stop() ends a read that waits."""

    read: Callable[[int], bytes]
    stop: Callable[[], None]


def _no_stop() -> None:
    """A read of a regular file never waits long."""


class RangeReader(NamedTuple):
    """How to read an archive at any place: pread(offset, length) gives exactly that or raises OSError; size in bytes.

    stop() ends reads that wait. Any thread may use it.
    """

    pread: Callable[[int, int], bytes]
    size: int
    stop: Callable[[], None]


def has_ranges(archive: ArchivePlace) -> TypeGuard[LocalPath | StoreUrl]:
    """Whether an archive can be read at any place: a URL, or a regular file."""
    return isinstance(archive, StoreUrl) or (isinstance(archive, LocalPath) and os.path.isfile(archive.path))


@contextmanager
def range_reader(archive: LocalPath | StoreUrl) -> Iterator[RangeReader]:
    """What reads an archive for which has_ranges() is true (ArchiveError where it cannot be opened)."""
    if isinstance(archive, StoreUrl):
        from pybackup.core.stores.remote_file import open_remote

        with open_remote(archive) as remote:
            yield RangeReader(remote.pread, remote.size, remote.stop)
        return
    with _open_file(archive.path) as file:
        yield RangeReader(pread_exactly(file.fileno(), archive.path), os.fstat(file.fileno()).st_size, _no_stop)


def _open_file(path: str) -> FileIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise ArchiveError(f"cannot open {path}: {error.strerror}") from error


def pread_exactly(fd: int, name: str) -> Callable[[int, int], bytes]:
    """A pread() that gives all bytes or raises OSError."""

    def pread(offset: int, length: int) -> bytes:
        content = os.pread(fd, length, offset)
        while len(content) < length:
            more = os.pread(fd, length - len(content), offset + len(content))
            if not more:
                raise OSError(f"{name} ends too early")
            content += more
        return content

    return pread


def read_around(fd: int) -> Callable[[int], bytes]:
    """A read() of a file that passes over what the disk below cannot read: zeros stand there, which is damage."""

    def read(at_most: int) -> bytes:
        try:
            return os.read(fd, at_most)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        at = os.lseek(fd, 0, os.SEEK_CUR)
        length = min(BLOCK - at % BLOCK, os.fstat(fd).st_size - at)
        try:
            content = os.pread(fd, length, at)
        except OSError:
            content = bytes(length)
        os.lseek(fd, at + len(content), os.SEEK_SET)
        return content

    return read


@contextmanager
def archive_reader(archive: ArchivePlace, *, tolerant: bool = False) -> Iterator[ArchiveReader]:
    """What reads on in the archive's file (ArchiveError where it cannot be opened).

    ``tolerant``: bytes of a file that cannot be read are zeros.
    """
    match archive:
        case StoreUrl():
            opened = _remote_reader(archive)
        case StandardStream():
            opened = _standard_input_reader()
        case LocalPath(path):
            opened = _file_reader(path, tolerant)
    with opened as reader:
        yield reader


@contextmanager
def _remote_reader(archive: StoreUrl) -> Iterator[ArchiveReader]:
    from pybackup.core.stores.remote_file import open_remote

    with open_remote(archive) as remote, closing(ReadAhead(remote.pread, remote.size)) as ahead:
        # Told to stop first: closing waits for what is on the way.
        try:
            yield ArchiveReader(ahead.read, remote.stop)
        finally:
            remote.stop()


@contextmanager
def _standard_input_reader() -> Iterator[ArchiveReader]:
    if os.isatty(0):
        raise RequestError("the standard input is a terminal, not an archive")
    with closing(PipeReader(0)) as pipe:
        yield ArchiveReader(pipe.read, pipe.stop)


@contextmanager
def _file_reader(path: str, tolerant: bool) -> Iterator[ArchiveReader]:
    with _open_file(path) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            yield ArchiveReader(read_around(file.fileno()) if tolerant else file.read, _no_stop)
            return
        with closing(PipeReader(file.fileno())) as pipe:
            yield ArchiveReader(pipe.read, pipe.stop)


@contextmanager
def open_archive(
    archive: ArchivePlace,
    *,
    threads: int,
    tolerant: bool = False,
    digests: Digests = Digests.ALL,
    allow_delta: bool = False,
) -> Iterator[ArchiveStream]:
    """An archive, open to be read once from beginning to end, with threads of its own (ArchiveError)."""
    name = "the standard input" if isinstance(archive, StandardStream) else str(archive)
    with (
        archive_reader(archive, tolerant=tolerant) as reader,
        ThreadPoolExecutor(threads, thread_name_prefix="pybackup-decompress") as pool,
    ):
        path = archive.path if isinstance(archive, LocalPath) else None
        size = os.path.getsize(path) if path is not None and os.path.isfile(path) else None
        yield ArchiveStream(
            reader.read,
            name,
            pool,
            stop=reader.stop,
            size=size,
            tolerant=tolerant,
            digests=digests,
            allow_delta=allow_delta,
        )
