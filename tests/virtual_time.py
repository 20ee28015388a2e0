"""An event loop without real time, so that no test sleeps: when nothing is to be done, its clock jumps.

What trio calls an autojump clock. And when nothing is to be done and nobody sleeps either, everybody waits for
somebody: that is a deadlock, and is told as one at once.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlockError(AssertionError):
    """Everybody waits, and nobody will ever wake anybody."""


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Lets the time pass instead of waiting. Changing: ``now``, in seconds."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and timeout is None:
            raise DeadlockError("everybody waits for somebody")
        if not events and timeout is not None and timeout > 0:
            self.now += timeout
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop; only for code that uses no threads."""

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


class InlineExecutor(ThreadPoolExecutor):
    """A thread pool that does everything at once in the caller's thread."""

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run(); and what asyncio would only log (an exception that nobody looked at) fails."""
    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
        result = runner.run(main)
        gc.collect()  # else it complains later, to somebody else
    assert not complaints, complaints
    return result
