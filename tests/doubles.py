"""Devices that watch or break another device; they stand in for what tests cannot wait for."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from pybackup.core.device import BlockDevice, BlockStatus, Buffer

_ERRORS = {"E": errno.EIO, "N": errno.ENOSPC}


class CheckedDevice:
    """Passes everything on, and asserts the BlockDevice contract from both sides.

    The caller: ranges lie on the disk and are multiples of ``alignment`` bytes (but for the disk's end), and
    nothing is asked after close(). The device: reads are complete, extents start right, have no gaps, end in time.
    """

    def __init__(self, inner: BlockDevice, alignment: int = 1) -> None:
        self.inner = inner
        self.alignment = alignment
        self.closed = False

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def read_only(self) -> bool:
        return self.inner.read_only

    async def pread(self, offset: int, length: int) -> Buffer:
        self._check(offset, length)
        data = await self.inner.pread(offset, length)
        assert len(data) == length, f"short read: {len(data)} of {length} bytes at {offset}"
        return data

    async def pwrite(self, offset: int, data: Buffer) -> None:
        self._check(offset, len(data))
        await self.inner.pwrite(offset, data)

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        self._check(offset, length)
        await self.inner.write_zeroes(offset, length, may_punch=may_punch, fast_only=fast_only)

    async def discard(self, offset: int, length: int) -> None:
        self._check(offset, length)
        await self.inner.discard(offset, length)

    async def flush(self) -> None:
        assert not self.closed, "flush after close"
        await self.inner.flush()

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        self._check(offset, length)
        assert length > 0, "extents of nothing"
        extents = await self.inner.extents(offset, length)
        check_extents(extents, offset, length)
        return extents

    def read_now(self, offset: int, length: int) -> Buffer | None:
        self._check(offset, length)
        data = self.inner.read_now(offset, length)
        assert data is None or len(data) == length, "short read_now"
        return data

    def write_now(self, offset: int, data: Buffer) -> bool:
        self._check(offset, len(data))
        return self.inner.write_now(offset, data)

    async def close(self) -> None:
        self.closed = True
        await self.inner.close()

    def _check(self, offset: int, length: int) -> None:
        end = offset + length
        assert not self.closed, "used after close"
        assert 0 <= offset <= end <= self.size, f"bytes {offset} to {end} of {self.size}"
        assert offset % self.alignment == 0, f"offset {offset} is not aligned"
        assert end == self.size or end % self.alignment == 0, f"end {end} is not aligned"


def check_extents(extents: Sequence[BlockStatus], offset: int, length: int) -> None:
    """Assert that this is an answer to extents(offset, length)."""
    assert extents, "no extents"
    position = offset
    for extent in extents:
        assert extent.offset == position, f"extent at {extent.offset}, not {position}"
        assert extent.length > 0, "empty extent"
        position = extent.end
    assert position <= offset + length, f"extents end at {position}, behind {offset + length}"


class FaultyDevice:
    """Fails where its maps say, and passes everything else on.

    ``reads`` has a letter for each pread, ``writes`` for each mutation: E fails with
    EIO, N with ENOSPC, any other letter (r, w) goes through. Behind the end of a map nothing fails. ``calls``
    counts both kinds, so a test can tell that the fault was met.
    """

    def __init__(self, inner: BlockDevice, reads: str = "", writes: str = "") -> None:
        self.inner = inner
        self._maps = {"read": reads, "write": writes}
        self.calls = {"read": 0, "write": 0}

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def read_only(self) -> bool:
        return self.inner.read_only

    async def pread(self, offset: int, length: int) -> Buffer:
        self._step("read")
        return await self.inner.pread(offset, length)

    async def pwrite(self, offset: int, data: Buffer) -> None:
        self._step("write")
        await self.inner.pwrite(offset, data)

    async def write_zeroes(self, offset: int, length: int, *, may_punch: bool = True, fast_only: bool = False) -> None:
        self._step("write")
        await self.inner.write_zeroes(offset, length, may_punch=may_punch, fast_only=fast_only)

    async def discard(self, offset: int, length: int) -> None:
        self._step("write")
        await self.inner.discard(offset, length)

    async def flush(self) -> None:
        await self.inner.flush()

    async def extents(self, offset: int, length: int) -> Sequence[BlockStatus]:
        return await self.inner.extents(offset, length)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Never answers: so every read is counted once, as a pread."""
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Never writes: so every write is counted once, as a pwrite."""
        return False

    async def close(self) -> None:
        await self.inner.close()

    def _step(self, kind: str) -> None:
        number = self.calls[kind]
        self.calls[kind] += 1
        code = _ERRORS.get(self._maps[kind][number : number + 1])
        if code:
            raise OSError(code, os.strerror(code), self.name)
