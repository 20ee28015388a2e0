"""Who cleans up when we are killed: a small process that outlives us.

A command that reads from us cannot tell our death from the end of the archive: the kernel closes the pipe either way.
So another process holds the pipe open too, and kills the command before it lets the pipe go.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

from .child_group import GRACE, look_until

_SCRIPT = f"""
read -r group || exit
read -r dismissed && exit
kill -s TERM -- "-$group"
sleep {GRACE:g}
kill -s KILL -- "-$group"
"""
"""Both lines come from us through its standard input; when we die, it ends before the second one."""


class DeathWatch:
    """Holds a descriptor open, and kills a process group when we die. Changing: our end of the pipe to it."""

    def __init__(self, held: int) -> None:
        """Start it (OSError). ``held``: the descriptor."""
        theirs, self._ours = os.pipe()
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[held],
                start_new_session=True,
            )
        except BaseException:
            os.close(self._ours)
            raise
        finally:
            os.close(theirs)

    def guard(self, group: int) -> None:
        """From now on, this process group dies after us."""
        self._tell(f"{group}\n")

    async def dismiss(self) -> None:
        """Let go of the descriptor, and kill nobody. Never raises."""
        self._tell("dismissed\n")
        with contextlib.suppress(OSError):
            os.close(self._ours)
        await look_until(lambda: self._process.poll() is not None)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it was killed itself
            os.write(self._ours, line.encode())
