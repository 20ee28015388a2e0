"""Opens what the user names as a source, with the checks that keep a backup honest."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .device import BlockDevice
from .devices.nbd import NbdDevice
from .devices.raw import Fingerprint, RawDevice, fingerprint_of
from .devices.sequential import SequentialDevice
from .errors import BusyError, RequestError, SourceChangedError, SourceError
from .image_formats import image_files, source_format
from .image_lock import ImageLock
from .nbd_uri import is_nbd_uri, parse_nbd_uri
from .qemu_checked import open_checked
from .qemu_nbd import Access, ImageFile

STDIN = "-"


@dataclass(slots=True)
class OpenSource:
    """A source, open. ``check`` raises if it changed since it was opened; ``close`` gives everything back.

    ``kind`` is told in the archive; ``warnings`` are sentences for the user.
    """

    device: BlockDevice
    check: Callable[[], None]
    close: Callable[[], Awaitable[None]]
    kind: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to open sources: the format told by the user, the size of the standard input in bytes, and leniencies."""

    image_format: str | None = None
    size: int | None = None
    force_share: bool = False
    allow_changing: bool = False


async def open_source(what: str, options: SourceOptions, pool: ThreadPoolExecutor | None = None) -> OpenSource:
    """Open one source (SourceError, BusyError, RequestError)."""
    if what == STDIN:
        return _open_stdin(options)
    if is_nbd_uri(what):
        return await _open_nbd(what)
    image = source_format(what, options.image_format)
    return _open_raw(what, options, pool) if image == "raw" else await _open_foreign(what, image, options)


def _open_raw(what: str, options: SourceOptions, pool: ThreadPoolExecutor | None) -> OpenSource:
    device = RawDevice.open(what, executor=pool, drop_cache=True)
    warnings: tuple[str, ...] = ()
    lock = None
    try:
        lock = ImageLock.for_reading(device.fileno(), what)
    except BusyError as busy:
        if not options.force_share:
            os.close(device.fileno())
            raise
        warnings = (_shared(busy),)
    except BaseException:
        os.close(device.fileno())
        raise
    before = device.fingerprint()

    async def close() -> None:
        if lock is not None:
            lock.release()
        await device.close()

    return OpenSource(
        device=device,
        check=_nothing if options.allow_changing else (lambda: _check_unchanged(before, _again(device), what)),
        close=close,
        kind="block device" if device.is_block_device else "raw",
        warnings=warnings,
    )


def _again(device: RawDevice) -> Fingerprint | None:
    try:
        return device.fingerprint()
    except OSError as error:
        raise SourceError(f"cannot look at {device.name} again: {error.strerror}") from error


async def _open_foreign(what: str, image: str, options: SourceOptions) -> OpenSource:
    """An image of another format, through qemu-nbd, which takes and keeps QEMU's locks on all its files."""
    files = image_files(what, image)
    before = [(path, _look(path)) for path, _ in files if os.path.exists(path)]
    warnings = _locked(what) if options.force_share else ()
    opened = await open_checked(ImageFile(what, image, Access.READ_ONCE, options.force_share), files)

    async def close() -> None:
        await opened.close()

    def check() -> None:
        for path, fingerprint in before:
            _check_unchanged(fingerprint, _look(path), path)

    return OpenSource(
        device=opened.device,
        check=_nothing if options.allow_changing else check,
        close=close,
        kind=image,
        warnings=warnings,
    )


def _look(path: str) -> Fingerprint | None:
    try:
        return fingerprint_of(os.stat(path))
    except OSError as error:
        raise SourceError(f"cannot look at {path}: {error.strerror}") from error


def _locked(what: str) -> tuple[str, ...]:
    """The warning about an image that another program has locked; none where it is free (SourceError)."""
    try:
        with open(what, "rb") as file, ImageLock.for_reading(file.fileno(), what):
            return ()
    except BusyError as busy:
        return (_shared(busy),)
    except OSError as error:
        raise SourceError(f"cannot open {what}: {error.strerror}") from error


def _shared(busy: BusyError) -> str:
    return f"{busy}: what is read of it is the disk of one moment only if it does not change meanwhile"


def _open_stdin(options: SourceOptions) -> OpenSource:
    if not options.size:
        raise RequestError("the standard input as a source needs its size: --size")
    if os.isatty(0):
        raise RequestError("the standard input is a terminal, not a disk")
    device = SequentialDevice(0, options.size, "the standard input")
    return OpenSource(device, device.check_end, device.close, "stdin")


async def _open_nbd(uri: str) -> OpenSource:
    device = await NbdDevice.connect(parse_nbd_uri(uri), name=uri)
    return OpenSource(device, _nothing, device.close, "nbd")


def _nothing() -> None:
    """Whether an export changed, only its server knows."""


def _check_unchanged(before: Fingerprint | None, after: Fingerprint | None, what: str) -> None:
    if before is not None and after != before:
        raise SourceChangedError(
            f"{what} changed while it was read, so what was read is not the disk of any one moment;"
            " use a snapshot, or --allow-changing if that does not matter"
        )
