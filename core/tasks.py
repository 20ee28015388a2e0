"""Tasks of the event loop: waited for, brought to their end, ended.

Whoever starts a task ends it, or hands it on; nothing that was started is left behind. Where a task waits for others
and is itself cancelled, it is said here what becomes of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Some: TypeAlias = Iterable[asyncio.Future[Any]]


async def ended(tasks: Some) -> None:
    """Return when all have ended; what came of them is nobody's to report. Who cancels us cancels them."""
    await asyncio.gather(*tasks, return_exceptions=True)


async def end(tasks: Some) -> None:
    """Cancel all, and return when they have ended; what came of them is nobody's to report."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await ended(ending)


async def wait(tasks: Some, seconds: float | None = None) -> set[asyncio.Future[Any]]:
    """Return when all have ended, or after ``seconds``: those that have not. Who cancels us does not cancel them."""
    waiting = list(tasks)
    return (await asyncio.wait(waiting, timeout=seconds))[1] if waiting else set()


async def end_within(tasks: Some, seconds: float) -> bool:
    """Let all come to their end by themselves, and end those that have not after ``seconds``; whether all have."""
    left = await wait(tasks, seconds)
    await end(left)
    return not left


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A task that works while the body does, and is ended with it."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        await end([task])


async def first_of(works: Iterable[Coroutine[Any, Any, T]]) -> T:
    """Do all at once; return, or raise, what comes of the first that ends, and end the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()
    finally:
        await end(tasks)


async def see_through(task: asyncio.Future[Any], cancelled: Callable[[], object] = lambda: None) -> None:
    """Return when it has ended, however often whoever waits here is cancelled; calls ``cancelled`` each time."""
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled()


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Do the work; a cancellation that comes meanwhile is raised afterwards, unless the work itself failed."""
    task = asyncio.create_task(work)
    cancellations: list[bool] = []
    await see_through(task, lambda: cancellations.append(True))
    result = task.result()
    if cancellations:
        raise asyncio.CancelledError
    return result


async def wait_until_at_most(tasks: set[asyncio.Task[None]], keep: int) -> None:
    """Return when at most ``keep`` of the tasks are left, and take those that have ended out; raise the first failure.

    All that have ended are looked at, for several may have failed together, and asyncio would tell of the others.
    """
    while len(tasks) > keep:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks -= done
        for failure in [task.exception() for task in done]:
            if failure is not None:
                raise failure
