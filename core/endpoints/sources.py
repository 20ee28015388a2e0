"""Opens what the user names as a source, with the checks that keep a backup honest."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pybackup.core.cow.presence_file import refuse_incomplete
from pybackup.core.device import BlockDevice
from pybackup.core.devices.raw import Fingerprint, RawDevice
from pybackup.core.devices.sequential import SequentialDevice
from pybackup.core.errors import Advice, BusyError, RequestError, SourceChangedError, SourceError
from pybackup.core.images.checked import open_checked
from pybackup.core.images.formats import source_format
from pybackup.core.images.parts import ImageParts
from pybackup.core.images.qemu_nbd import Access, ImageFile
from pybackup.core.nbd.client import NbdDevice
from pybackup.core.places.kinds import DiskPlace, LocalPath, NbdUri, StandardInput
from pybackup.core.system.blocking_calls import BlockingCalls
from pybackup.core.system.device_in_use import users_of
from pybackup.core.system.image_lock import ImageLock, forbids_reading, is_written

from .reflink import NoSnapshotError, Snapshot, snapshot


@dataclass(slots=True)
class OpenSource:
    """A source, open. ``check`` raises if it changed since it was opened; ``close`` gives everything back.

    ``kind`` is told in the archive. ``allocated``: bytes that are no holes, about, where that is known.
    ``warnings`` and ``notes`` are sentences for the user: what may make the backup worth less, and what helps to know.
    """

    device: BlockDevice
    check: Callable[[], None]
    close: Callable[[], Awaitable[None]]
    kind: str
    allocated: int | None = None
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to open sources: the format told by the user, and leniencies.

    ``snapshot`` is for raw files; AUTO falls back to reading under a lock.
    """

    image_format: str | None = None
    force_share: bool = False
    allow_changing: bool = False
    snapshot: Snapshot = Snapshot.NONE
    skip_unreadable: bool = False


async def open_source(place: DiskPlace, options: SourceOptions, pool: ThreadPoolExecutor | None = None) -> OpenSource:
    """Open one disk (SourceError, BusyError, RequestError)."""
    match place:
        case StandardInput(size):
            return _open_stdin(size)
        case NbdUri():
            return await _open_nbd(place)
        case LocalPath(path):
            return await _open_path(path, options, pool)


async def _open_path(what: str, options: SourceOptions, pool: ThreadPoolExecutor | None) -> OpenSource:
    refuse_incomplete(what)
    image = source_format(what, options.image_format, skip_unreadable=options.skip_unreadable)
    if image != "raw" and options.snapshot is Snapshot.REFLINK:
        raise RequestError(f"a reflink is for raw files, and {what} is a {image} image")
    try:
        return await (_open_raw(what, options, pool) if image == "raw" else _open_foreign(what, image, options))
    except BusyError as error:
        if not options.force_share:
            error.advice = error.advice or Advice.DISK_IN_USE
        raise


async def _open_raw(what: str, options: SourceOptions, pool: ThreadPoolExecutor | None) -> OpenSource:
    device = RawDevice.open(what, executor=pool, drop_cache=True)
    try:
        if not options.force_share and forbids_reading(device.fileno()):
            raise BusyError(f"{what} is in use by another program (QEMU image lock)")
        if options.snapshot is Snapshot.NONE:
            return _open_locked(device, what, options)
        return await _open_frozen(device, what, options, pool)
    except BaseException:
        device.close_unused()
        raise


def _open_locked(device: RawDevice, what: str, options: SourceOptions) -> OpenSource:
    """The disk itself, of which the lock and the check say whether anybody changes it meanwhile."""
    lock = None if options.force_share else ImageLock.for_reading(device.fileno(), what)
    warnings = [lock.note] if lock is not None and lock.note else []
    if lock is None and is_written(device.fileno()):
        warnings.append(_in_use_warning(what))
    if device.is_block_device and (user := users_of(what)):
        warnings.append(f"{what} is in use ({user}): the backup is of no one instant if it is written to meanwhile")
    before = device.fingerprint()

    async def close() -> None:
        if lock is not None:
            lock.release()
        await device.close()

    return OpenSource(
        device=device,
        check=_no_check if options.allow_changing else (lambda: _check_unchanged(before, _looked_at(device), what)),
        close=close,
        kind="block device" if device.is_block_device else "raw",
        allocated=_allocated([what], device.size),
        warnings=warnings,
    )


def _allocated(paths: Sequence[str], size: int) -> int | None:
    """Bytes of a disk of ``size`` bytes that these files hold, about: to estimate, and for nothing else."""
    try:
        found = [os.stat(path) for path in paths]
    except OSError:
        return None
    if not all(stat.S_ISREG(one.st_mode) for one in found):
        return None
    return min(size, 512 * sum(one.st_blocks for one in found))


def _looked_at(device: RawDevice) -> Fingerprint | None:
    try:
        return device.fingerprint()
    except OSError as error:
        raise SourceError(f"cannot look at {device.name} again: {error.strerror}") from error


async def _open_frozen(
    device: RawDevice, what: str, options: SourceOptions, pool: ThreadPoolExecutor | None
) -> OpenSource:
    """A snapshot, which nobody can change; with AUTO the disk itself where there is none.

    Whatever the reason is, no space for one: falling back does no harm, for a disk that somebody changes is refused.
    """
    calls = BlockingCalls(threads=1)
    try:
        # The kernel first writes out what waits in memory, which can take long.
        frozen = await calls.run(snapshot, device, pool)
    except NoSnapshotError as missing:
        if options.snapshot is Snapshot.REFLINK:
            raise
        try:
            source = _open_locked(device, what, options)
        except BusyError as busy:
            raise BusyError(f"{busy}; {missing}") from missing
        source.notes = [] if missing.is_usual else [f"{missing}; it is read under a lock"]
        return source
    finally:
        await calls.close()
    used = is_written(device.fileno())
    device.close_unused()
    note = f"{what} is in use: the backup is a snapshot of it, as a power failure would have left the disk"
    held = _allocated([what], frozen.size)
    return OpenSource(frozen, _no_check, frozen.close, "raw (reflink)", held, notes=[note] if used else [])


async def _open_foreign(what: str, image: str, options: SourceOptions) -> OpenSource:
    """An image of another format, through qemu-nbd, with locks on all files that it reads from."""
    parts = ImageParts.find(what, image, force_share=options.force_share)
    try:
        opened = await open_checked(
            ImageFile(what, image, Access.READ_ONCE, options.force_share), parts, options.skip_unreadable
        )
    except BaseException:
        parts.release()
        raise

    async def close() -> None:
        parts.release()
        await opened.close()

    return OpenSource(
        device=opened.device,
        check=_no_check if options.allow_changing else parts.check_unchanged,
        close=close,
        kind=image,
        allocated=_allocated([part.path for part in parts.parts], opened.device.size),
        warnings=parts.warnings,
        notes=parts.notes,
    )


def _in_use_warning(what: str) -> str:
    return f"{what} is in use by another program; what is read may be of no one moment"


def _open_stdin(size: int | None) -> OpenSource:
    if not size:
        raise RequestError("the standard input as a source needs its size", advice=Advice.TELL_SIZE)
    if os.isatty(0):
        raise RequestError("the standard input is a terminal, not a disk")
    device = SequentialDevice(0, size, "the standard input")
    return OpenSource(device, _no_check, device.close, "stdin")


async def _open_nbd(place: NbdUri) -> OpenSource:
    device = await NbdDevice.connect(place.address, name=str(place))
    return OpenSource(device, _no_check, device.close, "nbd")


def _no_check() -> None:
    """Nobody but its server knows whether an export changed, and a snapshot cannot."""


def _check_unchanged(before: Fingerprint | None, after: Fingerprint | None, what: str) -> None:
    if before is not None and after != before:
        raise SourceChangedError(
            f"{what} changed while it was read, so what was read is not the disk of any one moment",
            advice=Advice.SNAPSHOT,
        )
