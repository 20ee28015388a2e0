"""Opens the disks that a server offers: sources behind a copy-before-write filter, or the drives of an archive."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from pybackup.core.archive.chain import ParentSearch
from pybackup.core.archive.open_disks import open_disks
from pybackup.core.cow.copy_before_write import CopyBeforeWrite
from pybackup.core.cow.presence_file import refuse_incomplete
from pybackup.core.device import BlockDevice
from pybackup.core.devices.raw import RawDevice
from pybackup.core.endpoints.drive_names import NamedPlace, source_label, unique_drive_names
from pybackup.core.errors import Advice, BusyError, RequestError, SourceError
from pybackup.core.images.checked import open_checked
from pybackup.core.images.formats import head_and_tail, source_format
from pybackup.core.images.parts import ImageParts
from pybackup.core.images.qemu_nbd import Access, ImageFile, open_image
from pybackup.core.nbd.client import NbdDevice
from pybackup.core.places.kinds import LocalPath, NbdUri, ServedPlace, StandardInput, StoreUrl
from pybackup.core.sinks.archive_evidence import archive_evidence
from pybackup.core.system.device_in_use import claim, disk_in_use
from pybackup.core.system.image_lock import ImageLock
from pybackup.core.system.opened_files import identity_of


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk and what closes it and all that belongs to it. ``label``: what an archive tells of where it comes from."""

    device: BlockDevice
    close: Callable[[], Awaitable[None]]
    label: str
    warning: str | None = None
    """A sentence for the user where there is no lock."""
    is_shared: bool = False
    """Whether others may write to it, past the server."""
    stop: Callable[[], None] = lambda: None
    """Ends reads that wait for a store."""


async def open_served(
    sources: Sequence[NamedPlace[ServedPlace]],
    *,
    image_format: str | None,
    read_only: bool,
    force_share: bool,
    search: ParentSearch | None = None,
) -> dict[str, ServedDisk]:
    """The disks by their names; nothing stays open if one cannot be opened.

    ``search``: what finds the parents of an archive that is a delta.
    """
    archives = {} if image_format is not None else _archives(source.what for source in sources)
    for place, evidence in archives.items():
        if len(sources) == 1:
            return _open_archive(place, search)
        if isinstance(place, LocalPath):
            raise RequestError(f"{place} {evidence}, and archives are served alone, without other disks")
    disks: dict[str, ServedDisk] = {}
    async with AsyncExitStack() as undo:
        for name, source in zip(unique_drive_names(sources), sources, strict=True):
            disks[name] = await _open_disk(source.what, image_format, read_only, force_share)
            undo.push_async_callback(disks[name].close)
        undo.pop_all()
    return disks


async def _open_disk(place: ServedPlace, image_format: str | None, read_only: bool, force_share: bool) -> ServedDisk:
    match place:
        case StoreUrl():
            raise RequestError(f"{place}: an archive at a URL is served alone, and as what it is")
        case StandardInput():
            raise RequestError("the standard input cannot be served; it can only be read once")
        case NbdUri():
            return await _open_nbd(place, read_only)
        case LocalPath(path):
            return await _open_path(path, image_format, read_only, force_share)


async def _open_path(what: str, image_format: str | None, read_only: bool, force_share: bool) -> ServedDisk:
    refuse_incomplete(what)
    image = source_format(what, image_format)
    claimed, in_use = _claim(what, read_only, force_share)
    try:
        if image == "raw":
            disk = await _open_raw(what, read_only, force_share)
        else:
            access = Access.READ if read_only else Access.WRITE
            disk = await _open_foreign(ImageFile(what, image, access, force_share))
    except BaseException:
        _release(claimed)
        raise

    async def close() -> None:
        try:
            await disk.close()
        finally:
            _release(claimed)

    warnings = [one for one in (in_use, disk.warning) if one is not None]
    is_shared = force_share or in_use is not None
    return replace(disk, close=close, warning="; ".join(warnings) or None, is_shared=is_shared)


def _claim(what: str, read_only: bool, force_share: bool) -> tuple[int | None, str | None]:
    """The claim on a block device that guests write to, and what the user should know (BusyError, SourceError).

    Two that write to one filesystem destroy it: nobody can mount the device while it is served.
    """
    try:
        used = disk_in_use(what)
        if used is None:
            return None if read_only or force_share else claim(what), None
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise SourceError(f"cannot open {what}: {error.strerror}") from error
        used = "another program claimed it just now"
    if not read_only and not force_share:
        raise BusyError(
            f"{what} is in use: {used}. Two that write to one disk destroy what is on it",
            advice=Advice.SERVE_READ_ONLY,
        )
    return None, f"{what} is in use ({used}), and is served all the same"


def _claim_parts(image: str, parts: ImageParts, claimed: list[int]) -> None:
    """Add to ``claimed`` the claims on the other files of an image that are written to (BusyError, SourceError)."""
    known = {identity_of(os.stat(image))}
    for part in parts.parts:
        identity = identity_of(os.stat(part.path))
        if part.depth or identity in known:
            continue
        known.add(identity)
        one, _ = _claim(part.path, read_only=False, force_share=False)
        if one is not None:
            claimed.append(one)


def _release(*claimed: int | None) -> None:
    for one in claimed:
        if one is not None:
            os.close(one)


async def _open_nbd(place: NbdUri, read_only: bool) -> ServedDisk:
    """A disk of another server, which learns to be backed up while it is in use."""
    device = await NbdDevice.connect(place.address, name=str(place), writable=not read_only)

    async def close() -> None:
        try:
            await device.flush()
        finally:
            await device.close()

    return ServedDisk(CopyBeforeWrite(device), close, source_label(place))


async def _open_foreign(image: ImageFile) -> ServedDisk:
    """An image of another format, through qemu-nbd; a guest's flush is one of the image."""
    if image.force_share and image.access is not Access.READ:
        sentence = f"{image.path}: {image.image_format} images that others may write are served only to be read"
        raise RequestError(sentence, advice=Advice.SHARE_READ_ONLY)
    parts = ImageParts.find(image.path, image.image_format, force_share=image.force_share, writable=image.writable)
    claimed: list[int] = []
    try:
        if image.writable:
            _claim_parts(image.path, parts, claimed)
        opened = await open_checked(replace(image, access=Access.READ), parts)
        if image.writable:
            await opened.close()
            opened = await open_image(replace(image, more=parts.options))
            parts.check_opened(opened.process)
    except BaseException:
        _release(*claimed)
        parts.release()
        raise

    async def close() -> None:
        try:
            await opened.device.flush()
        finally:
            await opened.close()
            _release(*claimed)
            parts.release()

    label = source_label(LocalPath(image.path))
    return ServedDisk(CopyBeforeWrite(opened.device), close, label, "; ".join(parts.warnings) or None)


async def _open_raw(what: str, read_only: bool, force_share: bool) -> ServedDisk:
    device = RawDevice.open(what, writable=not read_only)
    lock = warning = None
    try:
        lock = (ImageLock.for_reading if read_only else ImageLock.for_writing)(device.fileno(), what)
        warning = lock.note
    except BusyError:
        if not force_share:
            await device.close()
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

    return ServedDisk(CopyBeforeWrite(device), close, source_label(LocalPath(what)), warning)


def _archives(places: Iterable[ServedPlace]) -> dict[LocalPath | StoreUrl, str]:
    """Those that are archives to be read, and no disks to be offered; each with a clause that says why."""
    found: dict[LocalPath | StoreUrl, str] = {}
    for place in places:
        if isinstance(place, StoreUrl):
            found[place] = "is at a URL"
        elif isinstance(place, LocalPath) and (evidence := _evidence(place.path)):
            found[place] = evidence
    return found


def is_archive(place: LocalPath | StoreUrl) -> bool:
    """Whether a place is served as an archive."""
    return bool(_archives([place]))


def _evidence(what: str) -> str | None:
    try:
        # A block device is a disk, whatever a guest has written to it.
        return archive_evidence(what, *head_and_tail(what)) if os.path.isfile(what) else None
    except (OSError, SourceError):
        return None


def _open_archive(place: LocalPath | StoreUrl, search: ParentSearch | None) -> dict[str, ServedDisk]:
    opened = open_disks(place, search, reads_ahead=True)
    disks = {name: ServedDisk(drive, drive.close, name, stop=opened.stop) for name, drive in opened.drives.items()}
    # The last to be closed is the first.
    first = next(iter(disks))
    disks[first] = replace(disks[first], close=opened.close)
    return disks
