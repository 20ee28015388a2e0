"""Where a stream of bytes goes: a file, a pipe, a command, an object store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pybackup.core.device import Buffer


class Sink(Protocol):
    """A place for a stream of bytes that becomes visible only when it is whole.

    After begin() either commit() or abort() is called, once; and abort() after a commit() that failed. Failures are
    TargetError.
    """

    @property
    def name(self) -> str:
        """What the user called it; stands in messages."""
        ...

    async def begin(self) -> None:
        """Get ready to be written to; nothing is visible under the final name yet."""
        ...

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Append all bytes of all buffers."""
        ...

    async def commit(self) -> None:
        """Return when everything written is durable and visible under the final name.

        When it is cancelled, it raises CancelledError only if that is not so, and will not be.
        """
        ...

    async def abort(self) -> None:
        """Leave nothing behind. Never raises."""
        ...
