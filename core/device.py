"""A disk, as everything in this package sees it.

The protocol is the smallest that a backup, a restore and an export need. It is asynchronous, for a device may
be a file, a socket or another program; the two ``*_now`` methods are the short way for what needs no waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pybackup.formats.buffer import Buffer
from pybackup.formats.vma_layout import CLUSTER_SIZE

__all__ = ["CLUSTER_SIZE", "BlockDevice", "BlockStatus", "Buffer"]


@dataclass(frozen=True, slots=True)
class BlockStatus:
    """What a device says of a range of bytes, after NBD's base:allocation and QEMU's block status.

    ``zero``: the range reads as zeros. ``hole``: it takes no space. Only ``zero`` allows not to read it.
    """

    offset: int
    length: int
    zero: bool
    hole: bool

    @property
    def end(self) -> int:
        """The offset of the first byte behind the range."""
        return self.offset + self.length


class BlockDevice(Protocol):
    """A disk of a fixed size, in bytes, with random access.

    Every offset and length is in bytes, any alignment is allowed, and 0 <= offset <= offset + length <= size.
    Failures of the device are OSError with errno set.
    """

    @property
    def size(self) -> int:
        """The size in bytes; fixed while the device is open."""
        ...

    @property
    def name(self) -> str:
        """What the user called it; stands in messages."""
        ...

    @property
    def read_only(self) -> bool:
        """True where every mutation fails with EPERM."""
        ...

    async def pread(self, offset: int, length: int) -> Buffer:
        """Read exactly ``length`` bytes; the buffer belongs to the caller."""
        ...

    async def pwrite(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``; durable only after a later flush()."""
        ...

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        """Make the range read as zeros.

        ``may_punch`` allows to give the space back; with ``fast_only`` fail with EOPNOTSUPP, and change nothing,
        where zeros would have to be written out like data.
        """
        ...

    async def discard(self, offset: int, length: int) -> None:
        """Say that the contents are not needed; what the range reads as afterwards is not defined."""
        ...

    async def flush(self) -> None:
        """Return when every write answered before this call is durable."""
        ...

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        """Describe the range: at least one extent, in order, without gaps, the first starting at ``offset``.

        The answer may end before the range does, never behind it. ``length`` is at least 1.
        """
        ...

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Read like pread() if that needs no waiting, or None."""
        ...

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write like pwrite() if that needs no waiting: True when all is written, False when nothing was."""
        ...

    async def close(self) -> None:
        """Give everything back; the device cannot be used afterwards. Does not flush."""
        ...
