"""The archives that lie in one place: a folder, or a prefix of a store.

Nothing is read that need not be: of a local file that is not called an archive the first and last bytes. Whether what
is listed is an archive indeed, its header tells.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pybackup.core.errors import ArchiveError, RequestError
from pybackup.core.places.kinds import HistoryPlace, LocalPath, StoreUrl
from pybackup.core.sinks.archive_evidence import archive_format, is_archive_name
from pybackup.core.sinks.archive_signs import is_archive

PARTIAL = ".partial"
"""How the names end of what is being written, or could not be written to its end."""
FIRST_BYTES = 64
"""By which files are told apart that cannot be archives."""
OWN = ".pybackup"
"""How the names begin of what we keep beside archives."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What may be an archive: its name in the folder, its place, bytes, and when the file was written.

    ``modified``: seconds since 1970, None where the store does not say. ``is_link``: the file lies elsewhere.
    """

    name: str
    place: HistoryPlace
    size: int
    modified: float | None
    is_link: bool = False


def archives_in(place: HistoryPlace, *, links: bool = True) -> Sequence[Listed]:
    """What may be an archive in a folder or below a prefix, by name; not in folders below (ArchiveError, RequestError).

    Never a partial file of ours. A link to a file of the same folder is not listed beside it. ``links``: whether others
    are followed, which may lead anywhere.
    """
    found = _in_store(place) if isinstance(place, StoreUrl) else _in_folder(place.path, links)
    return sorted(found, key=lambda one: one.name)


def _is_own(name: str) -> bool:
    return name.endswith(PARTIAL) or name.startswith(OWN)


def _in_store(url: StoreUrl) -> Iterator[Listed]:
    from pybackup.core.stores.remote_folder import open_remote_folder

    with open_remote_folder(url) as folder:
        for one in folder.entries():
            if not _is_own(one.name):
                yield Listed(one.name, folder.url_of(one.name), one.size, one.modified)


def _in_folder(path: str, links: bool) -> Iterator[Listed]:
    try:
        with os.scandir(path) as entries:
            wanted = (one for one in entries if not _is_own(one.name) and (links or not one.is_symlink()))
            files = [(one, found) for one in wanted if (found := _file_at(one)) is not None]
    except NotADirectoryError:
        raise RequestError(f"{path} is no folder; name the one that the archives lie in") from None
    except OSError as error:
        raise ArchiveError(f"cannot list {path}: {error.strerror}") from error
    own = {(found.st_dev, found.st_ino) for one, found in files if not one.is_symlink()}
    for one, found in files:
        is_link = one.is_symlink()
        if is_link and (found.st_dev, found.st_ino) in own:
            continue
        where = os.path.join(path, one.name)
        if is_archive_name(one.name) or _looks_so(where):
            yield Listed(one.name, LocalPath(where), found.st_size, found.st_mtime, is_link)


def _file_at(entry: os.DirEntry[str]) -> os.stat_result | None:
    """A regular file, also behind a link; None for all else, for what has gone, and for what leads nowhere."""
    try:
        found = entry.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _looks_so(path: str) -> bool:
    """Whether a file with any name is an archive by its bytes; who may not read it is not told that it is."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # It may be something else by now than what was listed.
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return archive_format(os.pread(fd, FIRST_BYTES, 0)) is not None and is_archive(fd)
        finally:
            os.close(fd)
    return False
