"""Opens an archive by the name that the user gave: a file, or - for the standard input."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import NamedTuple

from .archive_stream import ArchiveStream, Digests
from .devices.pipe_reader import PipeReader
from .errors import ArchiveError, RequestError

STDIN = "-"


class ArchiveReader(NamedTuple):
    """How to read on in an archive: read(at_most) gives bytes, or none at the end; stop() ends a read that waits."""

    read: Callable[[int], bytes]
    stop: Callable[[], None]


def _nothing() -> None:
    """A read of a regular file never waits long."""


@contextmanager
def archive_reader(archive: str) -> Iterator[ArchiveReader]:
    """What reads on in the archive's file (ArchiveError where it cannot be opened)."""
    if archive == STDIN:
        if os.isatty(0):
            raise RequestError("the standard input is a terminal, not an archive")
        with closing(PipeReader(0)) as pipe:
            yield ArchiveReader(pipe.read, pipe.stop)
        return
    try:
        file = open(archive, "rb", buffering=0)  # noqa: SIM115 - closed below, where failures of the body are no OSError of ours
    except OSError as error:
        raise ArchiveError(f"cannot open {archive}: {error.strerror}") from error
    with file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            yield ArchiveReader(file.read, _nothing)
            return
        with closing(PipeReader(file.fileno())) as pipe:
            yield ArchiveReader(pipe.read, pipe.stop)


@contextmanager
def open_archive(
    archive: str, *, threads: int, tolerant: bool = False, digests: Digests = Digests.ALL
) -> Iterator[ArchiveStream]:
    """An archive, open to be read once from beginning to end, with threads of its own (ArchiveError)."""
    name = "the standard input" if archive == STDIN else archive
    with (
        archive_reader(archive) as reader,
        ThreadPoolExecutor(threads, thread_name_prefix="pybackup-decompress") as pool,
    ):
        yield ArchiveStream(reader.read, name, pool, stop=reader.stop, tolerant=tolerant, digests=digests)
