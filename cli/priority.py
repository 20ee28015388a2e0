"""How much of the processor and of the disks we take from others: nice(2) and ioprio_set(2)."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from pybackup.core.errors import PybackupError

_CLASSES = {"best-effort": 2, "idle": 3}
"""By the numbers of the kernel's include/uapi/linux/ioprio.h. Real time, 1, is nothing for a backup."""
_CLASS_SHIFT = 13
_WHO_PROCESS = 1
DEFAULT_LEVEL = 4

_SYSCALLS = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "loongarch64": 30, "ppc64le": 273, "s390x": 282}
"""The number of ioprio_set on 64-bit machines; the C library has no function for it."""


class IoPriority(NamedTuple):
    """A scheduling class, by its name, and the level in it: 0 comes first, 7 last."""

    kind: str
    level: int


class PriorityError(PybackupError):
    """The system does not let us."""


def parse_io_priority(text: str) -> IoPriority:
    """idle, best-effort or best-effort:LEVEL; ValueError for anything else."""
    kind, colon, level = text.partition(":")
    if kind == "idle" and not colon:
        return IoPriority(kind, 0)
    if kind == "best-effort" and (not colon or level in list("01234567")):
        return IoPriority(kind, int(level or DEFAULT_LEVEL))
    raise ValueError(f"{text!r} is not idle, best-effort or best-effort:LEVEL with a LEVEL from 0 to 7")


def be_nice(niceness: int) -> None:
    """Take at most the processor time that this niceness gives. Threads that start later inherit it."""
    current = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness > current:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def set_io_priority(priority: IoPriority) -> None:
    """Set it for this thread and those that start later (PriorityError)."""
    number = _SYSCALLS.get(os.uname().machine) if struct.calcsize("P") == 8 else None
    if number is None:
        _set_with_program(priority)
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, _WHO_PROCESS, 0, _CLASSES[priority.kind] << _CLASS_SHIFT | priority.level):
        raise PriorityError(f"cannot set the I/O priority: {os.strerror(ctypes.get_errno())}")


def _set_with_program(priority: IoPriority) -> None:
    import subprocess

    command = ["ionice", "-c", str(_CLASSES[priority.kind]), "-n", str(priority.level), "-p", str(os.getpid())]
    if priority.kind == "idle":
        del command[3:5]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True)
    except OSError as error:
        raise PriorityError(f"cannot set the I/O priority: cannot run ionice: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise PriorityError(f"cannot set the I/O priority: {error.stderr.strip()}") from error
