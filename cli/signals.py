"""What signals do at each stage of the program, so that none ends it in a traceback, or leaves anything behind.

Until a command begins, the handler of `program` ends the process at once. While the command works, SIGINT is a
KeyboardInterrupt, for there may be something to clean up (cleaned_up). Within, whoever has a better way to end takes
the signals that cancel for the time of a body: an event loop (cancelling), a command that was started (`hooks`), the
course of a backup (`unattended`), a server (end_event). When a command has ended, SIGINT is too late to change
anything: it ends what is left of the process, with the exit code that it has anyway (end_with).

All handlers are installed here, but for the first, which `program` has before it imports anything.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pybackup.cli import debugging
from pybackup.core.errors import CancelledError

if TYPE_CHECKING:
    import asyncio
    import socket

_CANCELLING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _cancelling_signals() -> list[int]:
    """The signals that cancel what we do; SIGHUP that was ignored from the start (nohup) stays ignored."""
    return [number for number in _CANCELLING if signal.getsignal(number) is not signal.SIG_IGN]


def _is_program() -> bool:
    """Whether the process is ours: where we are a library, what becomes of it is not for us to say."""
    return "pybackup.cli.program" in sys.modules


# -- what is decided --


class Deciding(Protocol):
    """What comes to a point where it cannot be undone any more."""

    @property
    def is_decided(self) -> bool:
        """Whether that has come."""


_deciding: list[Deciding] = []
"""The job that runs, or ran last."""


def decided_by(job: Deciding) -> None:
    """From now on a signal is too late as soon as this job is decided."""
    _deciding[:] = [job]


def is_decided() -> bool:
    """Whether the job has done what cannot be undone: a signal that comes now is too late to cancel anything."""
    return bool(_deciding) and _deciding[-1].is_decided


def _too_late(*_: object) -> None:
    """What was asked has been done, or has failed, and is being told: the exit code says so already."""


# -- for the time of a body --


@contextlib.contextmanager
def taken_by(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Within the body the signals that cancel call ``handler``; then they go back to who had them.

    Once all is decided nobody gets them any more, up to the end of the program.
    """
    before = {number: signal.signal(number, handler) for number in _cancelling_signals()}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, _too_late if is_decided() and _is_program() else one)


@contextlib.contextmanager
def told_to_continue(tell: Callable[[], None]) -> Iterator[None]:
    """Within the body SIGCONT calls ``tell``, before an event loop does anything else."""
    before = signal.signal(signal.SIGCONT, lambda *_: tell())
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)


class Noted:
    """Signals that came, where none may be an exception. Once all is decided, none is noted.

    Changing: ``numbers``, by the signals' handler.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def take(self, number: int, _frame: object = None) -> bool:
        """Note a signal; a second SIGINT ends the program at once. Whether it was noted."""
        if is_decided():
            return False
        if number == signal.SIGINT and number in self.numbers:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.numbers.append(number)
        return True


# -- around an event loop --


_told: list[Callable[[CancelledError], None]] = []
"""Who is told of a signal: the last, for a job within a command's work knows best how to end."""


@contextlib.contextmanager
def cancelling(tell: Callable[[CancelledError], None]) -> Iterator[None]:
    """Within the body, in a running event loop, a signal calls ``tell``; a second SIGINT ends the program at once."""
    _told.append(tell)
    try:
        with _passed_on() if len(_told) == 1 else contextlib.nullcontext():
            yield
    finally:
        _told.pop()


@contextlib.contextmanager
def _passed_on() -> Iterator[None]:
    """Not the loop's own handlers: between its and those that come after it, a signal would end the process."""
    import asyncio

    loop = asyncio.get_running_loop()
    noted = Noted()

    def cancel(number: int) -> None:
        if noted.take(number):
            _told[-1](CancelledError("cancelled", number))

    with _woken_by_signals(loop), taken_by(partial(_pass_on, loop, cancel)):
        yield


def _pass_on(loop: asyncio.AbstractEventLoop, tell: Callable[[int], None], number: int, _frame: object) -> None:
    loop.call_soon_threadsafe(tell, number)


@contextlib.contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Within the body the loop wakes when a signal comes, whichever thread gets it, and the handlers are called."""
    import socket

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


def end_event(numbers: list[int] | None = None) -> asyncio.Event:
    """Set when a signal tells to end, whose number is added to ``numbers``.

    From now on none ends us before everything is given back.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def tell(number: int) -> None:
        if numbers is not None:
            numbers.append(number)
        told.set()

    for number in _cancelling_signals():
        loop.add_signal_handler(number, tell, number)
    return told


# -- around a command --


def _is_at_once() -> bool:
    """Whether SIGINT still ends the program at once: where we are a library, it is none of our business."""
    program = sys.modules.get("pybackup.cli.program")
    return program is not None and signal.getsignal(signal.SIGINT) is program.cancelled


@contextlib.contextmanager
def cleaned_up() -> Iterator[None]:
    """Within the body SIGINT raises KeyboardInterrupt; afterwards it does nothing, until end_with()."""
    if not _is_at_once():
        yield
        return
    sys.unraisablehook = _unraised
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _too_late)


def _unraised(found: sys.UnraisableHookArgs) -> None:
    """What came where Python cannot raise it, in a callback or a finalizer: a KeyboardInterrupt is sent once more.

    Of a finalizer that fails, because what it is to close was never opened, nobody needs to know.
    """
    if isinstance(found.exc_value, KeyboardInterrupt):
        _thread.interrupt_main()
    elif debugging.is_asked_for() or getattr(found.object, "__name__", "") != "__del__":
        sys.__unraisablehook__(found)


def end_with(code: int) -> None:
    """All is told: from now on a signal only ends what Python still has to do, such as to wait for threads."""
    if not _is_program():
        return
    for number in _cancelling_signals():
        # The very last is in C, where handlers are gone already.
        atexit.register(signal.signal, number, signal.SIG_IGN)
        signal.signal(number, lambda *_: os._exit(code))
