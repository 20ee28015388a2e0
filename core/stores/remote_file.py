"""A file at a URL, read by ranges.

Requests run in fsspec's own event loop, which has a thread of its own; whoever wants bytes waits in a thread of theirs,
and can be told to stop at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from pybackup.core.errors import ArchiveError, PybackupError
from pybackup.core.places.kinds import StoreUrl

from .failures import ShortAnswerError, StalledError, reason
from .filesystem import io_loop
from .patience import Patience
from .range_sources import RangeSource, source_of

T = TypeVar("T")
CLOSE_TIMEOUT = 5.0
"""Seconds that closing connections may take."""


class RemoteFile:
    """Exact reads at any place, from any thread.

    Fixed: name, patience, and from open() on size (bytes). Changing, under a lock: the requests under way, and
    whether it was stopped.
    """

    def __init__(self, url: StoreUrl, source: RangeSource, patience: Patience) -> None:
        """Nothing is opened yet."""
        self.name, self.size = str(url), 0
        self._source, self._patience, self._loop = source, patience, io_loop(url)
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self._stopped = False

    def open(self) -> None:
        """Look the file up (ArchiveError, RequestError)."""
        try:
            self.size = self._run(self._source.open)
        except PybackupError:
            raise
        except Exception as error:
            raise ArchiveError(f"cannot open {self.name}: {reason(error)}") from error

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly these bytes; OSError with the reason when patience is over, ECANCELED after stop()."""
        if not length:
            return b""
        try:
            return self._run(lambda: self._read(offset, length))
        except CancelledError:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)) from None
        except Exception as error:
            raise OSError(errno.EIO, reason(error)) from error

    async def _read(self, offset: int, length: int) -> bytes:
        content = await self._source.read(offset, length)
        if len(content) != length:
            raise ShortAnswerError(f"{len(content)} bytes came instead of {length}")
        return content

    def _run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        patient = self._patience.retry(lambda: self._timed(attempt))
        call: Future[T] = asyncio.run_coroutine_threadsafe(patient, self._loop)
        with self._lock:
            self._waiting.add(call)
            if self._stopped:
                call.cancel()
        try:
            return call.result()
        finally:
            call.cancel()
            with self._lock:
                self._waiting.discard(call)

    async def _timed(self, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._patience.seconds):
                return await attempt()
        except TimeoutError as error:
            raise StalledError from error

    def stop(self) -> None:
        """Make every read fail, from any thread, also those that wait already."""
        with self._lock:
            self._stopped = True
            waiting = list(self._waiting)
        for call in waiting:
            call.cancel()
        self._source.interrupt()

    def close(self) -> None:
        """Stop, and give connections back."""
        self.stop()
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(_bounded(self._source.close()), self._loop).result()


async def _bounded(closing: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(CLOSE_TIMEOUT):
        await closing


@contextmanager
def open_remote(url: StoreUrl) -> Iterator[RemoteFile]:
    """A file at a URL, open to be read by ranges (ArchiveError, RequestError)."""
    patience = Patience.of_environment()
    with closing(RemoteFile(url, source_of(url, patience), patience)) as remote:
        remote.open()
        yield remote
