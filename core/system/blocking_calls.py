"""System calls that may block, made in threads, and never left behind.

A cancelled coroutine does not stop a thread. If a write went on after its coroutine had ended, it could change
the disk when its range is no longer claimed, or write to a descriptor number that has been closed and given to
another file. So a call that has started is always waited for, and only then the cancellation goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from pybackup.core.tasks import see_through

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
"""Threads of a pool of our own: enough requests in flight for a local disk, few enough to cost nothing."""


class BlockingCalls:
    """Calls made in a thread pool on behalf of one device.

    Fixed: the pool. Changing: the calls that are under way, by the event loop's thread and by each call's end.
    """

    def __init__(self, executor: ThreadPoolExecutor | None = None, threads: int = THREADS) -> None:
        """``executor``: a pool shared with others, which stays open; None for a pool of our own, of ``threads``."""
        self._own = executor is None
        self._pool = executor or ThreadPoolExecutor(threads, thread_name_prefix="pybackup-io")
        self._running: set[Future[Any]] = set()

    @property
    def idle(self) -> bool:
        """True when no call is under way."""
        return not self._running

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``function`` returns, or raise what it raises.

        When cancelled, a call that has not started is dropped; one that has started is waited for first.
        """
        call = self.start(function, *args, **kwargs)
        try:
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            await _ended(call)
            raise

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin a call that nobody waits for but close(); what it raises is whose who asks the future."""
        call = self._pool.submit(function, *args, **kwargs)
        self._running.add(call)
        call.add_done_callback(self._running.discard)
        return call

    async def close(self) -> None:
        """Wait for what is under way, then end our own threads."""
        for call in list(self._running):
            await _ended(call)
        if self._own:
            self._pool.shutdown(wait=True)


async def _ended(call: Future[Any]) -> None:
    """Wait until ``call`` has ended, however often this task is cancelled meanwhile; its outcome is dropped."""
    if not call.done():
        waiter = asyncio.wrap_future(call)
        waiter.add_done_callback(_look_at_outcome)
        await see_through(waiter)


def _look_at_outcome(waiter: asyncio.Future[Any]) -> None:
    """Mark an exception as seen, else asyncio logs that nobody did."""
    if not waiter.cancelled():
        waiter.exception()
