"""Programs that end when we do, however we end.

PR_SET_PDEATHSIG asks the kernel for a signal at the death of the parent, and asks in vain where that has happened
already: so who set it must look at the parent once more. A shell does, which knows its parent's number as PPID.
"""

from __future__ import annotations

import os
import shutil
import sys

_LOOK = '[ "$PPID" = "$0" ] || exit 1; exec "$@"'
_ASK = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0);"
    " os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)
"""The same where there is no setpriv (of util-linux): 1 is PR_SET_PDEATHSIG, 9 is SIGKILL."""


def dying_with_us(*command: str) -> list[str]:
    """The command, to be started by this thread: it gets a SIGKILL when the thread, or all of us, has ended.

    Nothing is started, and the exit status is 1, where we have ended by then.
    """
    ours = str(os.getpid())
    if setpriv := shutil.which("setpriv"):
        return [setpriv, "--pdeathsig", "KILL", "/bin/sh", "-c", _LOOK, ours, *command]
    return [sys.executable, "-I", "-c", _ASK, ours, *command]
