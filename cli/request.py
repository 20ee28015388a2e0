"""What was asked of a command: how all commands take it.

A command that does a job takes one frozen dataclass, whose fields are called as the parameters that Click knows; what
`core` needs of it becomes a request of core's own. `takes` makes the first of what Click has read, so that from there
on every field has a type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pybackup.cli.progress import Display, choose, shows_summary
from pybackup.cli.running import make_trace, warn
from pybackup.core.runs.listener import Listener
from pybackup.core.trace import Trace

R = TypeVar("R")


def takes(request: Callable[..., R]) -> Callable[[Callable[[R], int]], Callable[..., int]]:
    """A decorator for the function of a command, which takes a ``request`` alone."""

    def decorate(function: Callable[[R], int]) -> Callable[..., int]:
        @functools.wraps(function)
        def command(**given: Any) -> int:
            return function(request(**given))

        return command

    return decorate


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """The options that every command has that does a job. ``speed`` in bytes a second."""

    speed: int
    progress: str
    quiet: bool
    verbose: bool
    trace: str

    def tracer(self) -> Trace:
        """Where trace events go (click.BadParameter)."""
        return make_trace(self.trace)

    def display(self) -> Display:
        """What shows the job; what it needs is loaded now."""
        return choose(self.progress, self.quiet)

    def shows_summary(self) -> bool:
        """Whether to say at the end what was done, and on the way what helps to know."""
        return shows_summary(self.progress, self.quiet, self.verbose)

    def listener(self) -> Listener:
        """Prints warnings; and what helps to know, where that is wanted."""
        if self.shows_summary():
            return Listener(lambda told: warn([told]), lambda told: warn([told], "note"))
        return Listener(lambda told: warn([told]))
