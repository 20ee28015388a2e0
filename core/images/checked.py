"""Opens an image to read the disk in it, and sees to it that all of the image is there."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from pybackup.core.errors import Advice, SourceError, UnreadableError
from pybackup.core.system.blocking_calls import BlockingCalls

from .parts import ImageParts
from .qemu_img import check_image
from .qemu_nbd import Access, ImageFile, QemuImage, open_image


async def open_checked(image: ImageFile, parts: ImageParts, skip_unreadable: bool = False) -> QemuImage:
    """Open an image for reading and check all its ``parts`` (SourceError, BusyError).

    What another program is changing cannot be checked. ``skip_unreadable``: tables that cannot be read are a warning.
    """
    opened = await _open_past_cache(replace(image, more=parts.options))
    try:
        parts.check_opened(opened.process)
        parts.check_size(opened.device.size)
        try:
            await _check_lengths(parts)
            for part in parts.images:
                if await check_image(part.path, parts.options_to_check(part), part.layout.unclosed):
                    parts.leaking.append(part.path)
        except UnreadableError as error:
            if not skip_unreadable:
                raise UnreadableError(str(error), advice=Advice.RUN_SKIP_UNREADABLE) from error
            parts.warnings.append(f"{error}; whether all of it is there is not known")
    except BaseException:
        await opened.close()
        raise
    return opened


async def _check_lengths(parts: ImageParts) -> None:
    calls = BlockingCalls(threads=1)
    try:
        await calls.run(parts.check_lengths)
    except asyncio.CancelledError:
        parts.stopped = True
        raise
    finally:
        await calls.close()


async def _open_past_cache(image: ImageFile) -> QemuImage:
    """Past the page cache if that was asked for, and where it cannot be, through it."""
    try:
        return await open_image(image)
    except SourceError as error:
        if image.access is not Access.READ_ONCE or "O_DIRECT" not in str(error):
            raise
    return await open_image(replace(image, access=Access.READ))
