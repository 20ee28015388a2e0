"""A file at a URL, read by ranges."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager

from pybackup.core.errors import ArchiveError, PybackupError
from pybackup.core.places.kinds import StoreUrl

from .failures import ShortAnswerError, reason
from .patience import Patience
from .patient_calls import PatientCalls
from .range_sources import RangeSource, source_of


class RemoteFile:
    """Exact reads at any place, from any thread.

    Fixed: name, and from open() on size (bytes). Changing: the requests under way, and whether it was stopped.
    """

    def __init__(self, url: StoreUrl, source: RangeSource, patience: Patience) -> None:
        """Nothing is opened yet."""
        self.name, self.size = str(url), 0
        self._source, self._calls = source, PatientCalls(url, patience)

    def open(self) -> None:
        """Look the file up (ArchiveError, RequestError)."""
        try:
            self.size = self._calls.run(self._source.open)
        except PybackupError:
            raise
        except Exception as error:
            raise ArchiveError(f"cannot open {self.name}: {reason(error)}") from error

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly these bytes; OSError with the reason when patience is over, ECANCELED after stop()."""
        if not length:
            return b""
        try:
            return self._calls.run(lambda: self._read(offset, length))
        except CancelledError:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)) from None
        except Exception as error:
            raise OSError(errno.EIO, reason(error)) from error

    async def _read(self, offset: int, length: int) -> bytes:
        content = await self._source.read(offset, length)
        if len(content) != length:
            raise ShortAnswerError(f"{len(content)} bytes came instead of {length}")
        return content

    def stop(self) -> None:
        """Make every read fail, from any thread, also those that wait already."""
        self._calls.stop()
        self._source.interrupt()

    def close(self) -> None:
        """Stop, and give connections back."""
        self.stop()
        self._calls.close(self._source.close())


@contextmanager
def open_remote(url: StoreUrl) -> Iterator[RemoteFile]:
    """A file at a URL, open to be read by ranges (ArchiveError, RequestError)."""
    patience = Patience.of_environment()
    with closing(RemoteFile(url, source_of(url, patience), patience)) as remote:
        remote.open()
        yield remote
