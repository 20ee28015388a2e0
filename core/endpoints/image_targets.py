"""Where a restored drive goes through NBD: a new image of another format, or an export that exists."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from pybackup.core.device import BlockDevice
from pybackup.core.errors import Advice, TargetError, TargetFullError
from pybackup.core.images.qemu_img import create_image
from pybackup.core.images.qemu_nbd import Access, ImageFile, QemuImage, open_image
from pybackup.core.nbd.client import NbdDevice
from pybackup.core.places.kinds import NbdUri
from pybackup.core.sinks.partial_file import PartialFile
from pybackup.core.sinks.target_failure import target_failure
from pybackup.core.system.blocking_calls import BlockingCalls

from .targets import ExistingDisk, Piece, size_of, what_is_left

READ_MOST = 64 << 20
"""Bytes of an export that are read to see whether they are zeros."""
READ_STEP = 1 << 20
FULL = 64 << 10
"""A filesystem with less than so many bytes is full."""


class NewImage:
    """An image of another format than raw, in one file, that gets its name when it is whole.

    qemu-img makes it of our partial file, and qemu-nbd writes to it; a failed one is left as ``NAME.partial``.
    Changing: the image, open or not, how many bytes were written to it, and whether it is whole and durable.
    """

    wants_zeros = False
    keeps_small_holes = False

    def __init__(self, path: str, image_format: str, *, replace: bool) -> None:
        self._file = PartialFile(path, replace=replace, keep_partial=True)
        self._format = image_format
        self._image: QemuImage | None = None
        self._disk: ExistingDisk | None = None
        self._written = 0
        self._is_whole = False
        self.left: str | None = None
        self._calls = BlockingCalls(threads=1)

    @property
    def name(self) -> str:
        """The path."""
        return self._file.path

    async def begin(self, size: int) -> None:
        """Create the image in exactly this size, and open it."""
        await self._calls.run(self._file.open)
        await create_image(self._file.own_path, self._format, size, name=self.name)
        image = ImageFile(self._file.own_path, self._format, Access.FILL)
        self._image = await open_image(image, name=self.name, failure=TargetError)
        self._disk = ExistingDisk(self._image.device)
        if self._image.device.size != size:
            raise TargetError(
                f"cannot create {self.name}: {self._format} images cannot have {size:,} bytes, only"
                f" {self._image.device.size:,}",
                advice=Advice.EXACT_SIZE,
            )

    async def write(self, pieces: Sequence[Piece]) -> None:
        """Write."""
        assert self._disk is not None
        self._written += size_of(pieces)
        try:
            await self._disk.write(pieces)
        except TargetError as error:
            raise self._full(error) from error

    def _full(self, error: TargetError) -> TargetError:
        """The failure as one for want of space, where that is so: not every format of QEMU's passes on the reason."""
        found = os.fstatvfs(self._file.fd)
        if isinstance(error, TargetFullError) or found.f_bavail * found.f_frsize >= FULL:
            return error
        return TargetFullError(f"cannot write {self.name}: no space is left")

    async def zeros(self, offset: int, length: int) -> None:
        """Nothing to do: a new image is zeros there."""

    async def sync(self) -> None:
        """Have the image closed, then fsync."""
        assert self._image is not None
        try:
            await self._image.device.flush()
        except OSError as error:
            raise target_failure(self.name, error, "finish") from error
        code = await self._image.close()
        if code:
            raise TargetError(f"cannot finish {self.name}: qemu-nbd ended with exit code {code}")
        await self._calls.run(self._file.sync)
        self._is_whole = True

    async def commit(self) -> None:
        """Give it its name."""
        self._file.take_name()
        await self._calls.close()

    async def abort(self) -> None:
        """Leave what there is as ``NAME.partial``; nothing where nothing was written."""
        if self._image is not None:
            with contextlib.suppress(OSError):
                await self._image.close()
        await self._calls.close()
        self._file.abort(worth_keeping=bool(self._written))
        self.left = what_is_left(self._file, self._written, is_whole=self._is_whole)


class NbdExport:
    """An export of an NBD server. Only with ``force`` it may hold data; else it must say that it is all zeros.

    Changing: the disk, connected or not.
    """

    keeps_small_holes = False

    def __init__(self, place: NbdUri, *, force: bool) -> None:
        self.name = str(place)
        self.wants_zeros = force
        self._address = place.address
        self._disk: ExistingDisk | None = None
        self.left: str | None = None

    async def begin(self, size: int) -> None:
        """Connect, and refuse an export that is too small or holds data."""
        device = await NbdDevice.connect(self._address, writable=True, name=self.name, failure=TargetError)
        self._disk = ExistingDisk(device)
        await self._disk.begin(size)
        if self.wants_zeros:
            return
        try:
            await _refuse_data(device)
        except OSError as error:
            raise target_failure(self.name, error, "look at") from error

    async def write(self, pieces: Sequence[Piece]) -> None:
        """Write."""
        assert self._disk is not None
        await self._disk.write(pieces)

    async def zeros(self, offset: int, length: int) -> None:
        """Write zeros, or punch a hole."""
        assert self._disk is not None
        await self._disk.zeros(offset, length)

    async def sync(self) -> None:
        """Flush, and take leave."""
        assert self._disk is not None
        await self._disk.sync()

    async def commit(self) -> None:
        """Nothing is left to do."""

    async def abort(self) -> None:
        """Take leave; what was overwritten is overwritten."""
        if self._disk is not None:
            await self._disk.abort()
            self.left = self._disk.left


async def _refuse_data(device: BlockDevice) -> None:
    """TargetError unless all of it reads as zeros: what the server does not call zero is read, where that is little."""
    at, left = 0, READ_MOST
    while at < device.size:
        for extent in await device.extents(at, device.size - at):
            at = extent.end
            if extent.zero:
                continue
            left -= extent.length
            if not await _is_zero(device, extent.offset, extent.end if left >= 0 else extent.offset + READ_STEP):
                raise TargetError(f"{device.name} holds data", advice=Advice.OVERWRITE)
            if left < 0:
                raise TargetError(f"{device.name} does not tell whether it holds data", advice=Advice.OVERWRITE)


async def _is_zero(device: BlockDevice, start: int, end: int) -> bool:
    end = min(end, device.size)
    for at in range(start, end, READ_STEP):
        length = min(READ_STEP, end - at)
        if await device.pread(at, length) != bytes(length):
            return False
    return True
