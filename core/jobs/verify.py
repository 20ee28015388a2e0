"""The verify job: reads everything of an archive, and lists what is wrong with it."""

from __future__ import annotations

from pybackup.core.archive.checked_extent import CheckedExtent
from pybackup.core.archive.stream import ArchiveStream
from pybackup.core.trace import Trace

from .walk import ArchiveWalk


class VerifyJob(ArchiveWalk):
    """Reads and checks all of an archive; ``damage`` lists what was found, nothing means it is sound."""

    def __init__(self, stream: ArchiveStream, *, speed: int = 0, trace: Trace | None = None) -> None:
        super().__init__(stream, list(stream.header.drives), speed=speed, trace=trace)

    async def _work(self) -> None:
        await self._walk()

    async def _take(self, checked: CheckedExtent) -> None:
        """Nothing is left to do: the stream has checked the extent."""
