"""Whether a file lies on a filesystem in memory (tmpfs, ramfs), as /dev/shm does.

They know no RWF_NOWAIT and never need one: there is no disk to wait for, but the swap of a machine short of memory.
"""

from __future__ import annotations

import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def lies_in_memory(fd: int, mounts: Path = MOUNTS) -> bool:
    """False also where it cannot be known: no /proc, or a filesystem that is not in the table (proc(5))."""
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    for line in lines:
        about, _, filesystem = line.partition(" - ")
        if about.split()[2:3] == [wanted]:
            return filesystem.split()[:1] != [] and filesystem.split()[0] in _IN_MEMORY
    return False
