"""Opens an archive for some of its drives, in the way that reads least: a full one, or a delta with its ancestors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from pybackup.core.errors import ArchiveError, NoKeyError
from pybackup.core.places.kinds import ArchivePlace, LocalPath, StoreUrl
from pybackup.formats.errors import UnsupportedError
from pybackup.formats.vma import DriveInfo, Header

from .by_index import FETCHES, DrivesByIndex, DrivesOfChain
from .chain import ParentSearch, open_chain
from .identity import read_identity
from .index import ArchiveIndex
from .open import RangeReader, has_ranges, open_archive, range_reader
from .stream import ArchiveStream, Digests

NEARLY_EMPTY = 16
"""By the index a GiB of data takes about 0.2 s longer, and without it a GiB of zeros 0.012 s (two cores)."""


@contextmanager
def open_drives(
    archive: ArchivePlace,
    wanted: Callable[[Header], Iterable[DriveInfo]],
    *,
    threads: int,
    digests: Digests = Digests.ALL,
    search: ParentSearch | None = None,
    tolerant: bool = False,
) -> Iterator[ArchiveStream | DrivesByIndex | DrivesOfChain]:
    """An archive of which some drives are wanted, which ``wanted`` tells when it is given the header (ArchiveError).

    Where the archive has an index, and can be read at any place, nothing is read but what belongs to these drives.
    When all drives are wanted, it is read from beginning to end, unless nearly all of it is zeros: a tebibyte of them
    has 300,000 extents, and some rows in the index. A delta is read with its ancestors, which ``search`` finds.
    ``tolerant``: damage is listed, and of a full archive all is read, for what its index says may be lost too.
    """
    with ExitStack() as stack:
        if has_ranges(archive) and (source := _ranges(archive, stack, tolerant=tolerant)) is not None:
            index = _sound_index(source, archive, tolerant=tolerant)
            pool = ThreadPoolExecutor(threads + FETCHES, thread_name_prefix="pybackup-decompress")
            if index and index.header.is_delta:
                chain = stack.enter_context(open_chain(archive, search))
                stack.enter_context(pool)
                yield DrivesOfChain(chain.view, pool, stop=chain.stop, tolerant=tolerant)
                return
            if index and not tolerant and _by_index_is_better(index, wanted):
                yield DrivesByIndex(index, stack.enter_context(pool), stop=source.stop)
                return
        stack.close()
        yield stack.enter_context(open_archive(archive, threads=threads, digests=digests, tolerant=tolerant))


def _ranges(archive: LocalPath | StoreUrl, stack: ExitStack, *, tolerant: bool) -> RangeReader | None:
    """What reads it at any place; None where its encryption has lost its end, and what is there is wanted anyway."""
    try:
        return stack.enter_context(range_reader(archive))
    except ArchiveError as error:
        if not tolerant or isinstance(error, NoKeyError) or isinstance(error.__cause__, OSError):
            raise
        return None


def _by_index_is_better(index: ArchiveIndex, wanted: Callable[[Header], Iterable[DriveInfo]]) -> bool:
    chosen = {drive.drive_id for drive in wanted(index.header)}
    return len(chosen) < len(index.header.drives) or _is_nearly_empty(index)


def _is_nearly_empty(archive: ArchiveIndex) -> bool:
    """Whether looking up what is stored costs less than passing over the zeros. What the index tells is but a hint."""
    told = archive.directory.about.get("drives")
    sizes = [one.get("stored_bytes") for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    stored = [size for size in sizes if isinstance(size, int)]
    return bool(stored) and sum(stored) * NEARLY_EMPTY < sum(drive.size for drive in archive.header.drives)


def _sound_index(source: RangeReader, archive: LocalPath | StoreUrl, *, tolerant: bool) -> ArchiveIndex | None:
    """The index; None where there is none, or a damaged one: who reads the archive through tells what is wrong."""
    try:
        return ArchiveIndex(source.pread, source.size, str(archive), allow_delta=True)
    except ArchiveError as error:
        if isinstance(error.__cause__, UnsupportedError) or (isinstance(error.__cause__, OSError) and not tolerant):
            raise
        return None


def archive_header(archive: ArchivePlace) -> Header:
    """The header alone (ArchiveError): of a remote archive with an index no more is fetched than that and the index."""
    try:
        return read_identity(archive).header
    except ArchiveError:
        if not has_ranges(archive):
            raise
        # Its index may be damaged, and its header sound.
        with open_archive(archive, threads=1, digests=Digests.NONE, allow_delta=True) as stream:
            return stream.header
