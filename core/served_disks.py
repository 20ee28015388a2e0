"""Opens the disks that a server offers: sources behind a copy-before-write filter, or the drives of an archive."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

from .archive_facts import pread_exactly
from .archive_index import ArchiveIndex, NoIndexError
from .copy_before_write import CopyBeforeWrite
from .device import BlockDevice
from .devices.archive_drive import ArchiveDrive
from .devices.nbd import NbdDevice
from .devices.probe import HEAD_BYTES, archive_format
from .devices.raw import RawDevice
from .drive_names import NamedSource, unique_drive_names
from .errors import ArchiveError, BusyError, RequestError
from .image_lock import ImageLock
from .nbd_uri import is_nbd_uri, parse_nbd_uri
from .sources import refuse_foreign


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk and what closes it and all that belongs to it."""

    device: BlockDevice
    close: Callable[[], Awaitable[None]]
    warning: str | None = None
    """A sentence for the user where there is no lock."""


async def open_served(
    sources: Sequence[NamedSource], *, image_format: str | None, read_only: bool, force_share: bool
) -> dict[str, ServedDisk]:
    """The disks by their names; nothing stays open if one cannot be opened."""
    if len(sources) == 1 and image_format is None and _is_archive(sources[0].what):
        return _open_archive(sources[0].what)
    if any(source.what == "-" for source in sources):
        raise RequestError("the standard input cannot be served; it can only be read once")
    disks: dict[str, ServedDisk] = {}
    async with AsyncExitStack() as undo:
        for name, source in zip(unique_drive_names(sources), sources, strict=True):
            if is_nbd_uri(source.what):
                disks[name] = await _open_nbd(source.what, read_only)
            else:
                disks[name] = await _open_disk(source.what, image_format, read_only, force_share)
            undo.push_async_callback(disks[name].close)
        undo.pop_all()
    return disks


async def _open_nbd(uri: str, read_only: bool) -> ServedDisk:
    """A disk of another server, which learns to be backed up while it is in use."""
    device = await NbdDevice.connect(parse_nbd_uri(uri), name=uri, writable=not read_only)

    async def close() -> None:
        try:
            await device.flush()
        finally:
            await device.close()

    return ServedDisk(CopyBeforeWrite(device), close)


async def _open_disk(what: str, image_format: str | None, read_only: bool, force_share: bool) -> ServedDisk:
    device = RawDevice.open(what, writable=not read_only)
    lock = warning = None
    try:
        if image_format is None:
            refuse_foreign(device, what)
        try:
            lock = (ImageLock.for_reading if read_only else ImageLock.for_writing)(device.fileno(), what)
            warning = lock.note
        except BusyError:
            if not force_share:
                raise
            warning = f"{what} is in use by another program, and is served all the same"
    except BaseException:
        await device.close()
        raise

    async def close() -> None:
        if not read_only:
            await device.flush()
        if lock is not None:
            lock.release()
        await device.close()

    return ServedDisk(CopyBeforeWrite(device), close, warning)


def _is_archive(what: str) -> bool:
    try:
        with open(what, "rb") as file:
            return archive_format(file.read(HEAD_BYTES)) in ("vma", "zstd")
    except OSError:
        return False


def _open_archive(path: str) -> dict[str, ServedDisk]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveError(f"cannot open {path}: {error.strerror}") from error
    try:
        archive = ArchiveIndex(pread_exactly(fd, path), os.fstat(fd).st_size, path)
    except NoIndexError:
        os.close(fd)
        raise ArchiveError(
            f"{path} has no index, so its drives cannot be read at random; `pybackup restore` reads it through"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    thread = ThreadPoolExecutor(1, thread_name_prefix="pybackup-archive")
    drives = [ArchiveDrive(archive, drive, thread) for drive in archive.header.drives]
    names = [drive.name for drive in archive.header.drives]
    disks = {}
    for number, (name, drive) in enumerate(zip(names, drives, strict=True)):
        # The last to be closed is the first.
        disks[name] = ServedDisk(drive, _closer(drive, None if number else (thread, fd)))
    return disks


def _closer(drive: ArchiveDrive, shared: tuple[ThreadPoolExecutor, int] | None) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        await drive.close()
        if shared is not None:
            thread, fd = shared
            thread.shutdown()
            os.close(fd)

    return close
