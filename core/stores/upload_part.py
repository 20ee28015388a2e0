"""The parts of a multipart upload: how large each is, and what holds one until the store has it.

S3 takes at most 10,000 parts, and nobody knows beforehand how large an archive will be. So parts grow with what was
sent already: small ones, several at a time, for archives of up to some 50 GB; larger ones wait in an unlinked
temporary file each, so that memory stays bounded whatever the size.
"""

from __future__ import annotations

import io
import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from pybackup.core.device import Buffer
from pybackup.core.system.file_io import write_fully

MEMORY = 16 << 20
"""Bytes of a part that is held in memory; a larger one goes to a temporary file."""
READ_AT_ONCE = 256 << 10
"""Bytes of a part that are read at a time."""


class Step(NamedTuple):
    """So many parts of so many bytes each; of which so many are held at a time, the one that is filled included."""

    parts: int
    size: int
    held: int


PLAN = (
    Step(2000, 8 << 20, 3),
    Step(2000, 16 << 20, 2),
    Step(2000, 128 << 20, 2),
    Step(4000, 1280 << 20, 2),
)
"""5.17 TiB in all: the largest object that S3 took for most of its life is 5 TiB."""


def steps_of(plan: tuple[Step, ...]) -> Iterator[Step]:
    """The step that each part belongs to, in order; ends after the last part."""
    for step in plan:
        for _ in range(step.parts):
            yield step


class UploadPart:
    """One part's bytes. Fixed: where they are held. Changing: the content, while it is filled."""

    def __init__(self, size: int) -> None:
        """``size``: bytes of the full part. OSError where a temporary file is needed and cannot be made."""
        self.filled, self._full = 0, size
        # Not from the heap, where blocks of this size leave gaps; unmapped it is gone at once.
        self._memory = mmap.mmap(-1, size if size <= MEMORY else 1)
        self._file = None
        if size > MEMORY:
            self._file = tempfile.TemporaryFile(prefix="pybackup-", buffering=0)  # noqa: SIM115 - close() does it

    @property
    def on_disk(self) -> bool:
        """Whether filling it may have to wait for a disk."""
        return self._file is not None

    @property
    def room(self) -> int:
        """Bytes that still fit."""
        return self._full - self.filled

    def fill(self, content: Buffer) -> None:
        """Append (OSError where the temporary file cannot grow)."""
        if self._file is None:
            self._memory[self.filled : self.filled + len(content)] = content
        else:
            write_fully(self._file.fileno(), self.filled, content)
        self.filled += len(content)

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from there on; any thread may read."""
        if self._file is None:
            return self._memory[offset : min(offset + length, self.filled)]
        return os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        """Give memory or disk back; no read may be under way."""
        if self._file is not None:
            self._file.close()
        self._memory.close()


class PartReader(io.RawIOBase):
    """A part as the file that one attempt sends; each has a position of its own, so a dead one disturbs none.

    Changing: the position, and ``reads``, which tells an attempt that is slow from one that is stalled.
    """

    def __init__(self, part: UploadPart) -> None:
        self._part, self._at, self.reads = part, 0, 0

    def read(self, size: int = -1) -> bytes:
        """At most a piece of it: whoever sends a part must not hold all of it again."""
        self.reads += 1
        content = self._part.read(self._at, min(size, READ_AT_ONCE) if size >= 0 else READ_AT_ONCE)
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As every file."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._part.filled}[whence]
        return self._at

    def tell(self) -> int:
        """As every file."""
        return self._at

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True
