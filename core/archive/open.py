"""Opens an archive where it lies: in a file, at a URL, or in what comes through the standard input."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from io import FileIO
from typing import NamedTuple, TypeGuard

from pybackup.core.devices.unreadable import BLOCK
from pybackup.core.errors import ArchiveError, NoKeyError, RequestError
from pybackup.core.places.kinds import S3_SCHEMES, ArchivePlace, LocalPath, StandardStream, StoreUrl
from pybackup.core.secrets.encrypting_sink import mark_of
from pybackup.core.secrets.keys import given
from pybackup.core.system.pipe_reader import PipeReader
from pybackup.formats.age_header import AgeHeader, looks_encrypted
from pybackup.formats.age_payload import NONCE_SIZE
from pybackup.formats.errors import FormatError

from .encrypted_file import HEAD, EncryptedFile, read_header
from .encrypted_stream import Unsealed
from .index_memory import goes_by_memory, remembered
from .read_ahead import ReadAhead
from .stream import ArchiveStream, Digests


class ArchiveReader(NamedTuple):
    """How to read on in an archive: read(at_most) gives bytes, or none at the end; stop() ends a read that waits.

    ``lost``: what of an encrypted archive did not decrypt so far, where that does not end the reading.
    ``is_encrypted()``: whether it is, once anything was read.
    """

    read: Callable[[int], bytes]
    stop: Callable[[], None]
    lost: list[FormatError]
    is_encrypted: Callable[[], bool]


class _RawReader(NamedTuple):
    """How to read on in the file, whatever it is."""

    read: Callable[[int], bytes]
    stop: Callable[[], None]


def _no_stop() -> None:
    """A read of a regular file never waits long."""


class RangeReader(NamedTuple):
    """How to read an archive at any place: pread(offset, length) gives exactly that or raises OSError; size in bytes.

    FormatError for what of an encrypted archive does not decrypt. stop() ends reads that wait. Any thread may use it.
    ``file_size``: bytes of the file; ``encryption``: the header of an encrypted one.
    """

    pread: Callable[[int, int], bytes]
    size: int
    stop: Callable[[], None]
    file_size: int
    encryption: AgeHeader | None = None


def has_ranges(archive: ArchivePlace) -> TypeGuard[LocalPath | StoreUrl]:
    """Whether an archive can be read at any place: a URL, or a regular file; true of what is missing, too."""
    if not isinstance(archive, LocalPath):
        return isinstance(archive, StoreUrl)
    return os.path.isfile(archive.path) or not os.path.exists(archive.path)


def connections_kept(place: object) -> AbstractContextManager[None]:
    """Within the body connections to a store stay open between one archive of it and the next."""
    if isinstance(place, StoreUrl) and place.scheme in S3_SCHEMES:
        from pybackup.core.stores.s3_clients import kept

        return kept(place)
    return nullcontext()


@contextmanager
def range_reader(archive: LocalPath | StoreUrl) -> Iterator[RangeReader]:
    """What reads an archive for which has_ranges() is true, in the clear.

    ArchiveError where it cannot be opened, NoKeyError where it is encrypted and nobody gave its key.
    """
    with file_ranges(archive) as file, ExitStack() as stack:
        try:
            reader = unsealed(file, str(archive))
        except NoKeyError:
            if not goes_by_memory():
                raise
            found = stack.enter_context(_by_memory(file, str(archive)))
            if found is None:
                raise
            reader = found
        yield reader


@contextmanager
def _by_memory(file: RangeReader, name: str) -> Iterator[RangeReader | None]:
    """What is remembered of an encrypted archive for which there is no key; None where nothing is."""
    try:
        head = file.pread(0, min(file.size, HEAD))
        header = read_header(file.pread, file.size, head)
        mark = mark_of(file.pread(0, min(file.size, header.size + NONCE_SIZE)))
    except (OSError, FormatError):
        yield None
        return
    with remembered(mark, file.size, name) as found:
        yield found and RangeReader(found.pread, found.size, file.stop, file.size, header)


def unsealed(file: RangeReader, name: str) -> RangeReader:
    """What reads an archive in the clear, by what reads its file (ArchiveError, NoKeyError)."""
    try:
        head = file.pread(0, min(file.size, HEAD))
        if not looks_encrypted(head):
            return file._replace(pread=_with_head(file.pread, head))
        opened = EncryptedFile(file.pread, file.size, name, given(), head)
    except OSError as error:
        raise ArchiveError(f"cannot read {name}: {error.strerror or error}") from error
    return RangeReader(opened.pread, opened.size, file.stop, file.size, opened.header)


@contextmanager
def file_ranges(archive: LocalPath | StoreUrl) -> Iterator[RangeReader]:
    """What reads the bytes of the file, also of an encrypted one (ArchiveError where it cannot be opened)."""
    if isinstance(archive, StoreUrl):
        from pybackup.core.stores.remote_file import open_remote

        with open_remote(archive) as remote:
            yield RangeReader(remote.pread, remote.size, remote.stop, remote.size)
        return
    with _open_file(archive.path) as file:
        size = os.fstat(file.fileno()).st_size
        yield RangeReader(pread_exactly(file.fileno(), archive.path), size, _no_stop, size)


def _with_head(pread: Callable[[int, int], bytes], head: bytes) -> Callable[[int, int], bytes]:
    """A pread() that has the first bytes of the file already."""

    def with_head(offset: int, length: int) -> bytes:
        return head[offset : offset + length] if offset + length <= len(head) else pread(offset, length)

    return with_head


def _open_file(path: str) -> FileIO:
    try:
        return open(path, "rb", buffering=0)
    except IsADirectoryError as error:
        raise ArchiveError(f"{path} is a folder; `pybackup list` tells which archives it has") from error
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
    """What reads on in an archive, in the clear (ArchiveError where it cannot be opened).

    ``tolerant``: bytes of a file that cannot be read, or do not decrypt, are zeros.
    """
    match archive:
        case StoreUrl():
            opened = _remote_reader(archive)
        case StandardStream():
            opened = _standard_input_reader()
        case LocalPath(path):
            opened = _file_reader(path, tolerant)
    with opened as file, closing(Unsealed(file.read, name_of(archive), given(), tolerant=tolerant)) as unsealed:
        yield ArchiveReader(unsealed.read, file.stop, unsealed.lost, lambda: unsealed.is_encrypted)


def name_of(archive: ArchivePlace) -> str:
    """What an archive that is read is called in sentences."""
    return "the standard input" if isinstance(archive, StandardStream) else str(archive)


@contextmanager
def _remote_reader(archive: StoreUrl) -> Iterator[_RawReader]:
    from pybackup.core.stores.remote_file import open_remote

    with open_remote(archive) as remote, closing(ReadAhead(remote.pread, remote.size)) as ahead:
        # Told to stop first: closing waits for what is on the way.
        try:
            yield _RawReader(ahead.read, remote.stop)
        finally:
            remote.stop()


@contextmanager
def _standard_input_reader() -> Iterator[_RawReader]:
    if os.isatty(0):
        raise RequestError("the standard input is a terminal, not an archive")
    with closing(PipeReader(0)) as pipe:
        yield _RawReader(pipe.read, pipe.stop)


@contextmanager
def _file_reader(path: str, tolerant: bool) -> Iterator[_RawReader]:
    with _open_file(path) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            yield _RawReader(read_around(file.fileno()) if tolerant else file.read, _no_stop)
            return
        with closing(PipeReader(file.fileno())) as pipe:
            yield _RawReader(pipe.read, pipe.stop)


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
    with (
        archive_reader(archive, tolerant=tolerant) as reader,
        ThreadPoolExecutor(threads, thread_name_prefix="pybackup-decompress") as pool,
    ):
        path = archive.path if isinstance(archive, LocalPath) else None
        size = os.path.getsize(path) if path is not None and os.path.isfile(path) else None
        stream = ArchiveStream(
            reader.read,
            name_of(archive),
            pool,
            stop=reader.stop,
            lost=reader.lost,
            size=size,
            tolerant=tolerant,
            digests=digests,
            allow_delta=allow_delta,
        )
        stream.is_encrypted = reader.is_encrypted()
        yield stream
