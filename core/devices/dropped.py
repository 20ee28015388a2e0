"""A disk for a while: sparse, without a name, and gone with whoever has it open."""

from __future__ import annotations

import os
import tempfile

from pybackup.core.errors import TargetError

from .raw import RawDevice


class DroppedDisk(RawDevice):
    """A RawDevice on a file that nobody can find. Nothing of it is to outlive us, so a flush has nothing to do."""

    @classmethod
    def make(cls, folder: str, size: int, name: str) -> DroppedDisk:
        """A disk of ``size`` bytes that reads as zeros, in a file in this folder (TargetError)."""
        try:
            with tempfile.TemporaryFile(prefix="pybackup-overlay-", dir=folder, buffering=0) as file:
                os.ftruncate(file.fileno(), size)
                fd = os.dup(file.fileno())
        except OSError as error:
            raise TargetError(f"cannot create a temporary file in {folder}: {error.strerror}") from error
        return cls.adopt(fd, name, writable=True, failure=TargetError)

    async def flush(self) -> None:
        """Nothing."""
