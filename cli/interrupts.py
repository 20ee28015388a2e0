"""What Ctrl-C does at each stage of the program, so that it never ends in a traceback.

Until a command begins, the handler of `program` ends the process at once. While it works, SIGINT is a
KeyboardInterrupt, for there may be something to clean up; around an event loop `running` has its own way. When it has
ended, SIGINT is too late to change anything: it ends what is left of the process, with the exit code that it has
anyway.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

DEBUG = "PYBACKUP_DEBUG"
"""The variable that makes every failure show where it comes from."""


def _is_ours() -> bool:
    """Whether the program's own handler is there: where we are a library, SIGINT is none of our business."""
    program = sys.modules.get("pybackup.cli.program")
    return program is not None and signal.getsignal(signal.SIGINT) is program.cancelled


@contextlib.contextmanager
def cleaned_up() -> Iterator[None]:
    """Within the body SIGINT raises KeyboardInterrupt; afterwards it does nothing, until end_with()."""
    if not _is_ours():
        yield
        return
    sys.unraisablehook = _unraised
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _too_late)


def _too_late(*_: object) -> None:
    """What was asked has been done, or has failed, and is being told."""


def _unraised(found: sys.UnraisableHookArgs) -> None:
    """What came where Python cannot raise it, in a callback or a finalizer: a KeyboardInterrupt is sent once more.

    Of a finalizer that fails, because what it is to close was never opened, nobody needs to know.
    """
    if isinstance(found.exc_value, KeyboardInterrupt):
        _thread.interrupt_main()
    elif DEBUG in os.environ or getattr(found.object, "__name__", "") != "__del__":
        sys.__unraisablehook__(found)


def end_with(code: int) -> None:
    """All is told: from now on a signal only ends what Python still has to do, such as to wait for threads."""
    if "pybackup.cli.program" not in sys.modules:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            # The very last is in C, where handlers are gone already.
            atexit.register(signal.signal, number, signal.SIG_IGN)
            signal.signal(number, lambda *_: os._exit(code))
