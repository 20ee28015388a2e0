"""Opens an image to read the disk in it, and sees to it that all of the image is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .errors import SourceError
from .image_formats import FORMATS
from .qemu_img import check_image
from .qemu_nbd import Access, ImageFile, QemuImage, open_image


async def open_checked(image: ImageFile, files: Sequence[tuple[str, str]]) -> QemuImage:
    """Open an image for reading and check all its ``files``, as image_files() lists them (SourceError, BusyError).

    An image that may change meanwhile (``force_share``) cannot be checked.
    """
    opened = await _open_past_cache(image)
    try:
        for path, image_format in files:
            if image_format in FORMATS and not image.force_share:
                await check_image(path, image_format)
    except BaseException:
        await opened.close()
        raise
    return opened


async def _open_past_cache(image: ImageFile) -> QemuImage:
    """Past the page cache if that was asked for, and where it cannot be, through it."""
    try:
        return await open_image(image)
    except SourceError as error:
        if image.access is not Access.READ_ONCE or "O_DIRECT" not in str(error):
            raise
    return await open_image(replace(image, access=Access.READ))
