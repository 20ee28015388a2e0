"""What every device that cannot be changed has in common."""

from __future__ import annotations

import errno
import os

from pybackup.core.device import Buffer


class ReadOnlyDevice:
    """The half of BlockDevice that changes a disk, refused; and no short ways. Devices add the other half."""

    name: str
    read_only = True

    async def pwrite(self, offset: int, data: Buffer) -> None:
        """EPERM."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), self.name)

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        """EPERM."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), self.name)

    async def discard(self, offset: int, length: int) -> None:
        """EPERM."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), self.name)

    async def flush(self) -> None:
        """Nothing to do."""

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Never: nobody knows how long a read takes."""
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Never; a write fails with EPERM."""
        return False
