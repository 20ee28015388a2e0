"""Opens an archive where it lies: in a file, at a URL, or in what comes through the standard input."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from io import FileIO
from typing import NamedTuple, TypeGuard

from pybackup.core.devices.unreadable import BLOCK
from pybackup.core.errors import ArchiveError, RequestError
from pybackup.core.places.kinds import ArchivePlace, LocalPath, StandardStream, StoreUrl
from pybackup.core.system.pipe_reader import PipeReader
from pybackup.formats.errors import UnsupportedError
from pybackup.formats.vma import DriveInfo, Header

from .by_index import FETCHES, DrivesByIndex
from .index import ArchiveIndex
from .read_ahead import ReadAhead
from .stream import ArchiveStream, Digests

NEARLY_EMPTY = 16
"""By the index a GiB of data takes about 0.2 s longer, and without it a GiB of zeros 0.012 s (two cores)."""


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


@contextmanager
def open_drives(
    archive: ArchivePlace,
    wanted: Callable[[Header], Iterable[DriveInfo]],
    *,
    threads: int,
    digests: Digests = Digests.ALL,
) -> Iterator[ArchiveStream | DrivesByIndex]:
    """An archive of which some drives are wanted, which ``wanted`` tells when it is given the header (ArchiveError).

    Where the archive has an index, and can be read at any place, nothing is read but what belongs to these drives.
    When all drives are wanted, it is read from beginning to end, unless nearly all of it is zeros: a tebibyte of them
    has 300,000 extents, and some rows in the index.
    """
    with ExitStack() as stack:
        if has_ranges(archive):
            source = stack.enter_context(range_reader(archive))
            index = _sound_index(source, archive)
            chosen = {drive.drive_id for drive in wanted(index.header)} if index else set()
            if index and (len(chosen) < len(index.header.drives) or _is_nearly_empty(index)):
                pool = ThreadPoolExecutor(threads + FETCHES, thread_name_prefix="pybackup-decompress")
                yield DrivesByIndex(index, stack.enter_context(pool), stop=source.stop)
                return
        stack.close()
        yield stack.enter_context(open_archive(archive, threads=threads, digests=digests))


def _is_nearly_empty(archive: ArchiveIndex) -> bool:
    """Whether looking up what is stored costs less than passing over the zeros. What the index tells is but a hint."""
    told = archive.directory.about.get("drives")
    sizes = [one.get("stored_bytes") for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    stored = [size for size in sizes if isinstance(size, int)]
    return bool(stored) and sum(stored) * NEARLY_EMPTY < sum(drive.size for drive in archive.header.drives)


def _sound_index(source: RangeReader, archive: LocalPath | StoreUrl) -> ArchiveIndex | None:
    """The index; None where there is none, or a damaged one: who reads the archive through tells what is wrong."""
    try:
        return ArchiveIndex(source.pread, source.size, str(archive))
    except ArchiveError as error:
        if isinstance(error.__cause__, OSError | UnsupportedError):
            raise
        return None


def archive_header(archive: ArchivePlace) -> Header:
    """The header alone (ArchiveError): of a remote archive with an index no more is fetched than that and the index."""
    with open_drives(archive, lambda _: (), threads=1, digests=Digests.NONE) as opened:
        return opened.header
