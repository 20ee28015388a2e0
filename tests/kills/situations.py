"""What is killed, and what must hold then: a command, what lies there before, and what may lie there afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable

from kills.box import Box, Ended
from live.processes import PYBACKUP

SIZE = (2 << 20) + 4096
"""Bytes of a disk; in its second half are holes."""
SAME = ("--uuid", "00010203-0405-0607-0809-0a0b0c0d0e0f", "--time", "1700000000")
"""Options that make archives of the same disks the same."""


def disk(seed: int, size: int = SIZE) -> bytes:
    """The content of a disk."""
    content = bytearray(random.Random(seed).randbytes(size))
    for at in range(size // 2, size, 512 << 10):
        hole = min(200 << 10, size - at)
        content[at : at + hole] = bytes(hole)
    return bytes(content)


class Situation:
    """A command that makes something, or only looks.

    Subclasses say what lies there, the command, and whether its result is there. The rest is the same for all: what
    holds after a kill, and that the run after it finds nothing in its way and leaves nothing behind.
    """

    needs: tuple[str, ...] = ()
    """Programs."""
    results: frozenset[str] = frozenset()
    """Names in the folder that belong there at the end."""

    def __init__(self, name: str) -> None:
        self.name = name

    def lay(self, box: Box) -> None:
        """Make what is read, once."""

    def before(self, box: Box) -> None:
        """Make things as they are before each game."""

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        """What is killed, and what is run after that."""
        raise NotImplementedError

    def meanwhile(self, box: Box, runs: Callable[[], bool]) -> None:
        """What goes on beside the command."""

    def is_there(self, box: Box, ended: Ended) -> bool:
        """Whether the result is there, and whole; False where all is as it was. AssertionError for all between."""
        raise NotImplementedError

    def hold(self, box: Box, ended: Ended) -> None:
        """After a kill: nothing runs, the sources are what they were, and the result is whole or not there."""
        box.wait_for_quiet()
        box.check_sources()
        assert "Traceback" not in ended.said, ended.said
        there = self.is_there(box, ended)
        assert there or ended.code != 0, f"exit code 0, and nothing is there: {ended.said}"

    def again(self, box: Box) -> None:
        """The run after a kill."""
        process = box.start(self.command(box, again=True))
        self.meanwhile(box, lambda: process.poll() is None)
        ended = box.end(process)
        assert ended.code == 0 and "Traceback" not in ended.said, f"the run after it: {ended.code}, {ended.said}"
        box.wait_for_quiet()
        box.check_sources()
        assert self.is_there(box, ended), "the run after it made nothing"
        box.check_clean(set(self.results))


class Look(Situation):
    """A command that only reads an archive or a disk."""

    def __init__(self, name: str, *arguments: str) -> None:
        super().__init__(name)
        self._arguments = arguments

    def lay(self, box: Box) -> None:
        box.source("a.img", disk(1))
        box.call("run", "--quiet", "a.img", "x.vma.zst")
        box.source("x.vma.zst")

    def command(self, box: Box, *, again: bool = False) -> list[str]:
        return [PYBACKUP, *self._arguments]

    def is_there(self, box: Box, ended: Ended) -> bool:
        box.check_clean(set())
        return True
