"""What has changed of a disk while its domain was running, told by the bitmap in its image when it is switched off."""

from __future__ import annotations

import errno

from pybackup.core.errors import PybackupError
from pybackup.core.images.parts import ImageParts
from pybackup.core.images.qemu_nbd import ImageFile, QemuImage, open_image
from pybackup.core.jobs.changes import BY_BITMAP
from pybackup.core.qemu.changes import BitmapChanges


class RestingChanges:
    """A ChangeMap: a qcow2 image's bitmap, through a qemu-nbd of its own, which is started when it is first asked.

    Fixed: the image, its bitmap. Changing: what is open.
    """

    way = BY_BITMAP

    def __init__(self, path: str, bitmap: str) -> None:
        self._path, self._bitmap = path, bitmap
        self._image: QemuImage | None = None
        self._changes: BitmapChanges | None = None

    async def run_at(self, cluster: int) -> tuple[int, bool]:
        """(end, may have changed) of clusters [cluster, end), which are alike (OSError)."""
        try:
            changes = self._changes or await self._open()
            return await changes.run_at(cluster)
        except PybackupError as error:
            raise OSError(errno.EIO, str(error), self._path) from error

    async def _open(self) -> BitmapChanges:
        """OSError, PybackupError."""
        parts = ImageParts.find(self._path, "qcow2", force_share=True)
        count = len(parts.parts)
        parts.release()
        if count > 1:
            # A bitmap of the same name in what is below may know of more.
            raise OSError(errno.ENOTSUP, "its image has several files, each with records of its own", self._path)
        image = self._image = await open_image(ImageFile(self._path, "qcow2", force_share=True, bitmap=self._bitmap))
        assert image.bitmap is not None
        self._changes = BitmapChanges(image.bitmap)
        return self._changes

    async def close(self) -> None:
        """End the qemu-nbd, if there is one."""
        if self._image is not None:
            image, self._image = self._image, None
            await image.close()
