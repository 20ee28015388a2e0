"""Runs a job: the event loop, the signals, the display."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import click

from pybackup.cli.printable import say
from pybackup.cli.progress import PERIOD, Display
from pybackup.cli.standard_streams import ReportError, forget_report
from pybackup.core.errors import CancelledError
from pybackup.core.jobs.job import Job
from pybackup.core.system.allocator import keep_freed_memory
from pybackup.core.trace import Trace

T = TypeVar("T")

_CANCELLING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def cancelling_signals() -> list[int]:
    """The signals that cancel what we do; SIGHUP that was ignored from the start (nohup) stays ignored."""
    return [number for number in _CANCELLING if signal.getsignal(number) is not signal.SIG_IGN]


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work in an event loop of its own; a signal cancels it (CancelledError).

    One that comes while the loop is made, or taken apart, is no exception there, which would be told by a traceback:
    the first is noted, and cancels the work; the second changes nothing any more.
    """
    early: list[int] = []
    whole = _cancelled_by_signals(work, early)
    handlers = {number: signal.signal(number, partial(_note, early)) for number in cancelling_signals()}
    try:
        keep_freed_memory()
        return asyncio.run(whole)
    finally:
        # Neither has begun where there could be no loop.
        whole.close()
        work.close()
        restore_handlers(handlers)


_jobs: list[Job] = []
"""The job that runs, or ran last."""


def is_decided() -> bool:
    """Whether the job has done what cannot be undone: a signal that comes now is too late to cancel anything."""
    return bool(_jobs) and _jobs[-1].is_decided


def restore_handlers(handlers: Mapping[int, Any]) -> None:
    """Give the signals to who had them; nobody gets them, up to the end of the program, once all is decided."""
    for number, handler in handlers.items():
        signal.signal(number, _too_late if is_decided() and "pybackup.cli.program" in sys.modules else handler)


def _too_late(*_: object) -> None:
    """The archive, or the disk, has its name, and the exit code says so."""


def _note(early: list[int], number: int, _frame: object) -> None:
    if is_decided():
        return
    if number == signal.SIGINT and number in early:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    early.append(number)


async def _cancelled_by_signals(work: Coroutine[Any, Any, T], early: list[int]) -> T:
    """asyncio.run() would cancel in the midst of a callback of the loop, which then complains; so the loop does it."""
    task = asyncio.current_task()
    assert task is not None
    reasons: list[CancelledError] = []

    def cancel(reason: CancelledError) -> None:
        reasons.append(reason)
        task.cancel()

    try:
        with _signals_cancel(cancel):
            if early:
                raise CancelledError("cancelled", early[0])
            return await work
    except asyncio.CancelledError:
        if reasons:
            raise reasons[0] from None
        raise


async def run_job(job: Job, verb: str, display: Display) -> None:
    """Run a job to its end; a signal cancels it, a second SIGINT ends the program at once."""
    _jobs[:] = [job]
    task = asyncio.create_task(job.run())
    with _signals_cancel(job.cancel), _told_to_continue(display.continued):
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


@contextlib.contextmanager
def _told_to_continue(tell: Callable[[], None]) -> Iterator[None]:
    """Within the body SIGCONT calls ``tell``, before the event loop does anything else."""
    before = signal.signal(signal.SIGCONT, lambda *_: tell())
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)


_told: list[Callable[[CancelledError], None]] = []
"""Who is told of a signal: the last, for a job within a command's work knows best how to end."""


@contextlib.contextmanager
def _signals_cancel(tell: Callable[[CancelledError], None]) -> Iterator[None]:
    """Within the body a signal calls ``tell``; a second SIGINT ends the program at once."""
    _told.append(tell)
    try:
        with _signal_handlers() if len(_told) == 1 else contextlib.nullcontext():
            yield
    finally:
        _told.pop()


@contextlib.contextmanager
def _signal_handlers() -> Iterator[None]:
    """Not the loop's own handlers: between its and those that come after it, a signal would end the process."""
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def cancel(number: int) -> None:
        if is_decided():
            return
        if number == signal.SIGINT and number in seen:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(number)
        _told[-1](CancelledError("cancelled", number))

    with _woken_by_signals(loop):
        handler = partial(_pass_on, loop, cancel)
        before = {number: signal.signal(number, handler) for number in cancelling_signals()}
        try:
            yield
        finally:
            restore_handlers(before)


def _pass_on(loop: asyncio.AbstractEventLoop, tell: Callable[[int], None], number: int, _frame: object) -> None:
    loop.call_soon_threadsafe(tell, number)


@contextlib.contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Within the body the loop wakes when a signal comes, whichever thread gets it, and the handlers are called."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for one in (ours, theirs):
            one.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        loop.add_reader(ours, _drain, ours)
        try:
            yield
        finally:
            loop.remove_reader(ours)
            signal.set_wakeup_fd(before)


def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while sock.recv(4096):
            pass


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
