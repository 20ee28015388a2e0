"""Requests to a store, made from any thread.

They run in fsspec's own event loop, which has a thread of its own; whoever wants an answer waits in a thread of theirs,
and can be told to stop at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from pybackup.core.places.kinds import StoreUrl

from .failures import StalledError
from .filesystem import io_loop
from .patience import Patience

T = TypeVar("T")
CLOSE_TIMEOUT = 5.0
"""Seconds that closing connections may take."""


class PatientCalls:
    """Runs requests, each repeated while its failure may pass.

    Fixed: patience, loop. Changing, under a lock: the requests under way, and whether it was stopped.
    """

    def __init__(self, url: StoreUrl, patience: Patience) -> None:
        """RequestError where the packages for this URL are not installed."""
        self._patience, self._loop = patience, io_loop(url)
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self._stopped = False

    def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ``attempt`` returns; its last failure, or concurrent.futures.CancelledError after stop()."""
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
        """Make every request fail, also those that wait already."""
        with self._lock:
            self._stopped = True
            waiting = list(self._waiting)
        for call in waiting:
            call.cancel()

    def close(self, closing: Coroutine[Any, Any, None]) -> None:
        """Wait a little for what gives connections back; whether it can does not matter any more."""
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(_bounded(closing), self._loop).result()


async def _bounded(closing: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(CLOSE_TIMEOUT):
        await closing
