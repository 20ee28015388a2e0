"""Small files that are written beside restored disks: the configurations that an archive holds."""

from __future__ import annotations

from pybackup.core.sinks.partial_file import PartialFile
from pybackup.core.sinks.target_failure import target_failure
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.core.system.file_io import write_fully


class SmallFile:
    """A file whose content is known; it gets its name together with the disks.

    Fixed: path and content. ``left``: nothing is, when it fails.
    """

    left: str | None = None

    def __init__(self, path: str, content: bytes, *, replace: bool) -> None:
        self._file = PartialFile(path, replace=replace)
        self._content = content
        self._calls = BlockingCalls(threads=1)

    @property
    def name(self) -> str:
        """The path."""
        return self._file.path

    async def begin(self) -> None:
        """Write it under a temporary name (TargetError)."""
        await self._calls.run(self._begin)

    def _begin(self) -> None:
        self._file.open()
        try:
            write_fully(self._file.fd, 0, self._content)
        except OSError as error:
            raise target_failure(self.name, error, "write") from error

    async def sync(self) -> None:
        """Make it durable (TargetError)."""
        await self._calls.run(self._file.sync)

    async def commit(self) -> None:
        """Give it its name (TargetError)."""
        self._file.take_name()
        await self._calls.close()

    async def abort(self) -> None:
        """Remove it. Never raises."""
        await self._calls.close()
        self._file.abort()
