"""Opens an archive by the name that the user gave: a file, or - for the standard input."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from .archive_stream import ArchiveStream
from .errors import ArchiveError, RequestError

STDIN = "-"


@contextmanager
def archive_reader(archive: str) -> Iterator[Callable[[int], bytes]]:
    """A function that reads on in the archive's file (ArchiveError where it cannot be opened)."""
    if archive == STDIN:
        if os.isatty(0):
            raise RequestError("the standard input is a terminal, not an archive")
        yield lambda size: os.read(0, size)
        return
    try:
        file = open(archive, "rb", buffering=0)  # noqa: SIM115 - closed below, where failures of the body are no OSError of ours
    except OSError as error:
        raise ArchiveError(f"cannot open {archive}: {error.strerror}") from error
    with file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield file.read


@contextmanager
def open_archive(
    archive: str, *, threads: int, tolerant: bool = False, digests: bool = True
) -> Iterator[ArchiveStream]:
    """An archive, open to be read once from beginning to end, with threads of its own (ArchiveError)."""
    name = "the standard input" if archive == STDIN else archive
    with (
        archive_reader(archive) as read,
        ThreadPoolExecutor(threads, thread_name_prefix="pybackup-decompress") as pool,
    ):
        yield ArchiveStream(read, name, pool, tolerant=tolerant, digests=digests)
