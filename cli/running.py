"""Runs a job: the event loop, the signals, the display."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from typing import Any, TypeVar

import click

from pybackup.cli.progress import PERIOD, Display
from pybackup.core.allocator import keep_freed_memory
from pybackup.core.errors import CancelledError
from pybackup.core.job import Job
from pybackup.core.trace import Trace

T = TypeVar("T")

_told: ContextVar[Callable[[int], None] | None] = ContextVar("_told", default=None)
"""Who is told of a signal's number in this loop."""
_CANCELLING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def cancelling_signals() -> list[int]:
    """The signals that cancel what we do; SIGHUP that was ignored from the start (nohup) stays ignored."""
    return [number for number in _CANCELLING if signal.getsignal(number) is not signal.SIG_IGN]


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work in an event loop of its own; a signal cancels it (CancelledError)."""
    keep_freed_memory()
    return asyncio.run(_cancelled_by_signals(work))


async def _cancelled_by_signals(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run() would cancel in the midst of a callback of the loop, which then complains; so the loop does it."""
    task = asyncio.current_task()
    assert task is not None
    reasons: list[CancelledError] = []

    def cancel(reason: CancelledError) -> None:
        reasons.append(reason)
        task.cancel()

    try:
        with _signals_cancel(cancel):
            return await work
    except asyncio.CancelledError:
        if reasons:
            raise reasons[0] from None
        raise


async def run_job(job: Job, verb: str, display: Display) -> None:
    """Run a job to its end; a signal cancels it, a second SIGINT ends the program at once."""
    task = asyncio.create_task(job.run())
    with _signals_cancel(job.cancel):
        display.start(job, verb)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=PERIOD)
                display.update(job)
        finally:
            display.stop(job)
    task.result()


@contextlib.contextmanager
def _signals_cancel(tell: Callable[[CancelledError], None]) -> Any:
    """Within, signals are told to this; behind it again to whoever was told before."""
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def cancel(number: int) -> None:
        if number == signal.SIGINT and number in seen:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(number)
        tell(CancelledError("cancelled", number))

    before = {number: signal.getsignal(number) for number in cancelling_signals()}
    for number in before:
        loop.add_signal_handler(number, cancel, number)
    outer = _told.set(cancel)
    try:
        yield
    finally:
        _told.reset(outer)
        around = _told.get()
        for number, handler in before.items():
            if around is not None:
                loop.add_signal_handler(number, around, number)
            else:
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


def warn(sentences: Iterable[str], word: str = "warning") -> None:
    """Print sentences for the user, a line each, that are no failures."""
    for sentence in sentences:
        click.echo(f"pybackup: {word}: {sentence}", err=True)


def make_trace(patterns: str) -> Trace:
    """The trace for --trace EVENTS."""
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not Trace([pattern], _print_event).wants_any:
            raise click.BadParameter(f"no event matches {pattern!r}; --trace help lists them", param_hint="--trace")
    return Trace(wanted, _print_event)


def _print_event(name: str, values: dict[str, object]) -> None:
    print(json.dumps({"trace": name, **values}), file=sys.stderr, flush=True)


def threads_or_default(threads: int | None) -> int:
    """The number of threads asked for, or one for each processor that we may use."""
    return threads or len(os.sched_getaffinity(0))
