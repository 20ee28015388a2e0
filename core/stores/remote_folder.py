"""What lies in a folder at a URL: below a key's prefix in a bucket, or in a folder of a server."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from pybackup.core.errors import ArchiveError, PybackupError, TargetError
from pybackup.core.places.kinds import StoreUrl

from .failures import is_missing, reason
from .folder_sources import FolderSource, RemoteEntry, folder_of
from .patience import Patience
from .patient_calls import PatientCalls

MOST_SMALL = 16 << 20
"""Bytes of a small file that read() gives."""


class RemoteFolder:
    """An open folder, for any thread. Fixed: the URL. Changing: the connection below.

    ``is_serial``: one request waits for the other.
    """

    def __init__(self, url: StoreUrl, source: FolderSource, patience: Patience) -> None:
        """Nothing is opened yet."""
        self.name, self._url = str(url), url
        self.is_serial = source.is_serial
        self._source, self._calls = source, PatientCalls(url, patience)

    def open(self) -> None:
        """Connect (ArchiveError, RequestError)."""
        try:
            self._calls.run(self._source.open)
        except PybackupError:
            raise
        except Exception as error:
            raise ArchiveError(f"cannot open {self.name}: {reason(error)}") from error

    def entries(self) -> Sequence[RemoteEntry]:
        """The files that lie in it, not those in folders below (ArchiveError)."""
        try:
            return self._calls.run(self._source.entries)
        except Exception as error:
            raise ArchiveError(f"cannot list {self.name}: {reason(error)}") from error

    def pread(self, name: str) -> Callable[[int, int], bytes]:
        """What gives exactly so many bytes of a file from an offset on, or raises OSError with the reason."""

        def pread(offset: int, length: int) -> bytes:
            try:
                content = self._calls.run(lambda: self._source.read(name, offset, length)) if length else b""
            except Exception as error:
                raise OSError(errno.EIO, reason(error)) from error
            if len(content) != length:
                raise OSError(errno.EIO, f"{len(content)} bytes came instead of {length}")
            return content

        return pread

    def read(self, name: str) -> bytes | None:
        """A small file, at most MOST_SMALL bytes of it; None where there is none (ArchiveError)."""
        try:
            return self._calls.run(lambda: self._source.read(name, 0, MOST_SMALL))
        except Exception as error:
            if is_missing(error):
                return None
            raise ArchiveError(f"cannot read {self.name}/{name}: {reason(error)}") from error

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file, or make it: at no time there is a part of it (TargetError)."""
        try:
            self._calls.run(lambda: self._source.write(name, content))
        except Exception as error:
            raise TargetError(f"cannot write {self.name}/{name}: {reason(error)}") from error

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none (TargetError)."""
        try:
            self._calls.run(lambda: self._source.remove(name))
        except Exception as error:
            if not is_missing(error):
                raise TargetError(f"cannot remove {self.name}/{name}: {reason(error)}") from error

    def url_of(self, name: str) -> StoreUrl:
        """The URL of a file in it."""
        return StoreUrl(f"{self._url.url.rstrip('/')}/{name}")

    def close(self) -> None:
        """Give connections back."""
        self._calls.stop()
        self._calls.close(self._source.close())


_open: dict[str, tuple[RemoteFolder, int]] = {}
"""The folders that are open, by their URL, and how many use each: to connect takes longer than to ask."""
_lock = threading.Lock()


@contextmanager
def open_remote_folder(url: StoreUrl, *, alone: bool = False) -> Iterator[RemoteFolder]:
    """A folder at a URL (ArchiveError, RequestError): the one that is open already, unless it is wanted ``alone``."""
    if alone:
        with closing(_connected(url)) as folder:
            yield folder
        return
    with _lock:
        known, users = _open.get(url.text, (None, 0))
        if known is not None:
            _open[url.text] = known, users + 1
    folder = known or _new(url)
    try:
        yield folder
    finally:
        _part_from(url, folder)


def _new(url: StoreUrl) -> RemoteFolder:
    folder = _connected(url)
    with _lock:
        _open.setdefault(url.text, (folder, 1))
    return folder


def _connected(url: StoreUrl) -> RemoteFolder:
    patience = Patience.of_environment()
    folder = RemoteFolder(url, folder_of(url, patience), patience)
    try:
        folder.open()
    except BaseException:
        folder.close()
        raise
    return folder


def _part_from(url: StoreUrl, folder: RemoteFolder) -> None:
    with _lock:
        known, users = _open.get(url.text, (None, 0))
        if known is folder and users > 1:
            _open[url.text] = folder, users - 1
            return
        if known is folder:
            del _open[url.text]
    folder.close()
