"""The program itself, for the command `pybackup` and for `python -m pybackup.cli`.

Nobody else imports this module: the first thing that it does is to answer SIGINT, for the whole process. Until then
nothing is imported that Python has not loaded already.
"""

from __future__ import annotations

import os


def cancelled(*_: object) -> None:
    """Nothing is open yet that would have to be closed: say so, and end."""
    os.write(2, b"pybackup: cancelled\n")
    os._exit(130)


try:
    import signal

    # SIGINT that was ignored from the start (a shell's background job) stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, cancelled)
    from pybackup.cli.main import main
except KeyboardInterrupt:
    cancelled()

__all__ = ["cancelled", "main"]
