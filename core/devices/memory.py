"""A disk in memory: for examples, tests, and trying out what a job does without touching a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from itertools import groupby

from pybackup.core.device import BlockStatus, Buffer

BLOCK_SIZE = 4096
"""Bytes in a block: zeros are reported in whole blocks, counted from the start of the disk."""

_ZERO_BLOCK = bytes(BLOCK_SIZE)


class MemoryDevice:
    """A disk of fixed size in memory; implements BlockDevice.

    Fixed: size, name, read_only. Changing: the bytes, by the mutations only, on the event loop's thread.
    Nothing here ever waits, so each operation happens in one step.
    """

    def __init__(self, data: bytes | bytearray | int, name: str = "memory", read_only: bool = False) -> None:
        """``data``: the first contents, which are copied, or a size in bytes for a disk of zeros."""
        self._data = bytearray(data)
        self._name = name
        self._read_only = read_only

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self._data)

    @property
    def name(self) -> str:
        """What stands in messages."""
        return self._name

    @property
    def read_only(self) -> bool:
        """True where every mutation fails with EPERM."""
        return self._read_only

    def contents(self) -> bytes:
        """A copy of the whole disk as it is now."""
        return bytes(self._data)

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read exactly ``length`` bytes. Raises OSError (EINVAL) for a range that is not on the disk."""
        return self.read_now(offset, length)

    async def pwrite(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``. Raises OSError: EPERM when read-only, EINVAL for a range that is not on the disk."""
        self.write_now(offset, data)

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        """Make the range read as zeros. Raises OSError as pwrite() does; it is always fast."""
        self._may_change(offset, length)
        self._data[offset : offset + length] = bytes(length)

    async def discard(self, offset: int, length: int) -> None:
        """Forget the range, which reads as zeros afterwards. Raises OSError as pwrite() does."""
        await self.write_zeroes(offset, length)

    async def flush(self) -> None:
        """Do nothing: memory is as durable as it will ever be."""

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """Describe the whole range: runs of zero blocks are holes, all else is data."""
        self._on_disk(offset, length)
        return list(self._runs(offset, offset + length))

    def read_now(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes; never None. Raises OSError as pread() does."""
        self._on_disk(offset, length)
        with memoryview(self._data) as view:
            return bytes(view[offset : offset + length])

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write all of ``data``; always True. Raises OSError as pwrite() does."""
        self._may_change(offset, len(data))
        self._data[offset : offset + len(data)] = data
        return True

    async def close(self) -> None:
        """Do nothing: the bytes go with the object, and contents() still shows them."""

    def _runs(self, start: int, end: int) -> Iterator[BlockStatus]:
        blocks = range(start - start % BLOCK_SIZE, end, BLOCK_SIZE)
        for zero, group in groupby(blocks, self._is_zero):
            run = list(group)
            first, behind = max(run[0], start), min(run[-1] + BLOCK_SIZE, end)
            yield BlockStatus(first, behind - first, zero=zero, hole=zero)

    def _is_zero(self, block: int) -> bool:
        left = self.size - block
        return self._data.startswith(_ZERO_BLOCK if left >= BLOCK_SIZE else bytes(left), block)

    def _may_change(self, offset: int, length: int) -> None:
        if self._read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), self._name)
        self._on_disk(offset, length)

    def _on_disk(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= len(self._data):
            raise OSError(errno.EINVAL, f"no bytes {offset} to {offset + length}: the size is {self.size}", self._name)
