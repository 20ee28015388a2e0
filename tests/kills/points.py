"""When to kill: after some time, or just before a system call, by strace."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from kills.box import Box, Ended

SYSTEM_CALLS = (
    *("mkdir", "rmdir", "link", "linkat", "unlink", "unlinkat", "rename", "renameat", "renameat2", "symlink"),
    *("ftruncate", "fallocate", "flock", "fsync", "fdatasync", "sync_file_range", "chmod", "fchmod", "utimensat"),
    *("write", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg", "recvmsg", "bind", "listen", "connect"),
    *("accept4", "socketpair", "pipe2", "shutdown", "clone3", "clone", "vfork", "execve", "kill", "tgkill"),
    *("wait4", "waitid", "exit_group"),
)
"""What changes something that others see. Without openat and close, of which the start of Python makes a thousand."""

Meanwhile = Callable[[Callable[[], bool]], None]
"""What goes on beside a command; told how to see whether it still runs."""


class Point(Protocol):
    """An instant at which to kill a command."""

    def kill(self, box: Box, command: list[str], meanwhile: Meanwhile) -> Ended:
        """Play the command up to here; how it ended, perhaps before the instant came, or without one of its parts."""
        ...


class Instant(NamedTuple):
    """Some seconds after the start."""

    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.4f}"

    def kill(self, box: Box, command: list[str], meanwhile: Meanwhile) -> Ended:
        process = box.start(command)
        timer = threading.Timer(self.seconds, process.kill)
        timer.start()
        meanwhile(lambda: process.poll() is None)
        ended = box.end(process)
        timer.cancel()
        timer.join()
        return ended


class SystemCall(NamedTuple):
    """Before a thread makes the ``number``-th call of this name, whichever thread or child of it comes first."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"

    def kill(self, box: Box, command: list[str], meanwhile: Meanwhile) -> Ended:
        inject = f"inject={self.name}:signal=KILL:when={self.number}"
        traced = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={self.name}", "-e", inject, "--", *command]
        process = box.start(traced)
        meanwhile(lambda: process.poll() is None)
        return box.end(process)


def parse(text: str) -> Point:
    """What str() of a point gave."""
    name, colon, number = text.partition(":")
    return SystemCall(name, int(number)) if colon else Instant(float(text))


def system_calls_of(box: Box, command: list[str], meanwhile: Meanwhile) -> list[SystemCall]:
    """Play the command to its end: the points before each system call of each of its own threads."""
    log = box.folder / "strace"
    known = ",".join(f"?{name}" for name in SYSTEM_CALLS)  # not every machine has each
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(log), "-e", f"trace={known}", "--"]
    process = box.start([*strace, *command])
    meanwhile(lambda: process.poll() is None)
    box.end(process)
    highest: dict[str, int] = {}
    for (_, name), count in Counter(_calls_of_own_threads(log.read_text(errors="replace"))).items():
        highest[name] = max(count, highest.get(name, 0))
    return [SystemCall(name, number + 1) for name, count in sorted(highest.items()) for number in range(count)]


def _calls_of_own_threads(log: str) -> Iterator[tuple[str, str]]:
    """(thread, name) of each call, without those of other programs that the command has started."""
    own: set[str] = set()
    for line in log.splitlines():
        thread, _, what = line.partition(" ")
        own = own or {thread}
        if thread not in own:
            continue
        if made := re.search(r"parent_tid=\[(\d+)\]", what):
            own.add(made[1])
        if begun := re.match(r"\s*(\w+)\(", what):
            yield thread, begun[1]
