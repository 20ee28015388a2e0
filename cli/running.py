"""Runs a job: the event loop, the signals, the display."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from pybackup.cli.progress import PERIOD, Display
from pybackup.core.allocator import keep_freed_memory
from pybackup.core.errors import CancelledError
from pybackup.core.job import Job
from pybackup.core.trace import Trace

T = TypeVar("T")

_CANCELLING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work in an event loop of its own."""
    keep_freed_memory()
    return asyncio.run(work)


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


async def run_preparation(work: Coroutine[Any, Any, T]) -> T:
    """Do what comes before a job; a signal cancels it as it does a job."""
    task = asyncio.create_task(work)
    reasons: list[CancelledError] = []

    def cancel(reason: CancelledError) -> None:
        reasons.append(reason)
        task.cancel()

    with _signals_cancel(cancel):
        try:
            return await task
        except asyncio.CancelledError:
            raise reasons[0] if reasons else asyncio.CancelledError() from None


@contextlib.contextmanager
def _signals_cancel(cancel_with: Callable[[CancelledError], object]) -> Any:
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def cancel(number: int) -> None:
        if number == signal.SIGINT and number in seen:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(number)
        cancel_with(CancelledError("cancelled", number))

    # SIGHUP that was ignored from the start (nohup) stays ignored.
    numbers = [number for number in _CANCELLING if signal.getsignal(number) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, cancel, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


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
