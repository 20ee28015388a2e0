"""Runs a job: in an event loop, cancelled by signals, with a display."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

import click

from pybackup.cli import signals
from pybackup.cli.printable import say
from pybackup.cli.progress import PERIOD, Display
from pybackup.cli.standard_streams import ReportError, forget_report
from pybackup.core.errors import CancelledError
from pybackup.core.jobs.job import Job
from pybackup.core.system.allocator import keep_freed_memory
from pybackup.core.trace import Trace

T = TypeVar("T")


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work in an event loop of its own; a signal cancels it (CancelledError).

    One that comes while the loop is made, or taken apart, is no exception there, which would be told by a traceback:
    the first is noted, and cancels the work; the second changes nothing any more.
    """
    early = signals.Noted()
    whole = _cancelled_by_signals(work, early)
    with signals.taken_by(early.take):
        try:
            keep_freed_memory()
            return asyncio.run(whole)
        finally:
            # Neither has begun where there could be no loop.
            whole.close()
            work.close()


async def _cancelled_by_signals(work: Coroutine[Any, Any, T], early: signals.Noted) -> T:
    """asyncio.run() would cancel in the midst of a callback of the loop, which then complains; so the loop does it."""
    task = asyncio.current_task()
    assert task is not None
    reasons: list[CancelledError] = []

    def cancel(reason: CancelledError) -> None:
        reasons.append(reason)
        task.cancel()

    try:
        with signals.cancelling(cancel):
            if early.numbers:
                raise CancelledError("cancelled", early.numbers[0])
            return await work
    except asyncio.CancelledError:
        if reasons:
            raise reasons[0] from None
        raise


async def run_job(job: Job, verb: str, display: Display) -> None:
    """Run a job to its end; a signal cancels it, a second SIGINT ends the program at once."""
    signals.decided_by(job)
    task = asyncio.create_task(job.run())
    with signals.cancelling(job.cancel), signals.told_to_continue(display.continued):
        display.start(job, verb)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=PERIOD)
                if not task.done():
                    display.update(job)
        finally:
            display.stop(job)
    task.result()
    if job.late_error is not None:
        warn([f"what was asked is done, but afterwards: {job.late_error}"])


def warn(sentences: Iterable[str], word: str = "warning") -> None:
    """Print sentences for the user, a line each, that are no failures."""
    for sentence in sentences:
        say(f"pybackup: {word}: {sentence}", err=True)


def tell_report(text: str) -> None:
    """Print the report of something that cannot be undone: where nobody can read it, that is no failure any more."""
    try:
        print(text, flush=True)
    except (ReportError, OSError) as error:
        forget_report()
        warn([f"{error}; all else is done"])


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
