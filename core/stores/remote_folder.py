"""What lies in a folder at a URL: below a key's prefix in a bucket, or in a folder of a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pybackup.core.errors import ArchiveError, PybackupError, TargetError
from pybackup.core.places.kinds import StoreUrl

from .failures import is_missing, reason
from .folder_sources import FolderSource, RemoteEntry, folder_of
from .patience import Patience
from .patient_calls import PatientCalls


class RemoteFolder:
    """An open folder, used by one thread at a time. Fixed: the URL. Changing: the connection below."""

    def __init__(self, url: StoreUrl, source: FolderSource, patience: Patience) -> None:
        """Nothing is opened yet."""
        self.name, self._url = str(url), url
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

    def read(self, name: str) -> bytes | None:
        """All of a small file; None where there is none (ArchiveError)."""
        try:
            return self._calls.run(lambda: self._source.read(name))
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


@contextmanager
def open_remote_folder(url: StoreUrl) -> Iterator[RemoteFolder]:
    """A folder at a URL (ArchiveError, RequestError)."""
    patience = Patience.of_environment()
    folder = RemoteFolder(url, folder_of(url, patience), patience)
    try:
        folder.open()
        yield folder
    finally:
        folder.close()
