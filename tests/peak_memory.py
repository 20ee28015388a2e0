"""How much memory a command takes at its worst."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

_RUN = """
import atexit, runpy, sys
def tell(path=sys.argv[1]):
    with open("/proc/self/status") as status, open(path, "w") as file:
        file.write(next(line for line in status if line.startswith("VmHWM")).split()[1])
atexit.register(tell)
sys.argv = ["pybackup", *sys.argv[2:]]
runpy.run_module("pybackup.cli", run_name="__main__")
"""


class Peak(NamedTuple):
    """How a run ended. ``mib``: resident memory at its most, of the process itself; the parent's does not count."""

    code: int
    mib: float
    err: str


def peak_of(*arguments: str | Path) -> Peak:
    """Run a command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        told = os.path.join(folder, "peak")
        done = subprocess.run(
            [sys.executable, "-c", _RUN, told, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            timeout=120,
        )
        return Peak(done.returncode, int(Path(told).read_text()) / 1024, done.stderr.decode())
