"""Opens what the user names as a source, with the checks that keep a backup honest."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .device import BlockDevice
from .devices.nbd import NbdDevice
from .devices.probe import HEAD_BYTES, TAIL_BYTES, image_format
from .devices.raw import Fingerprint, RawDevice
from .devices.sequential import SequentialDevice
from .errors import RequestError, SourceChangedError, SourceError
from .image_lock import ImageLock
from .nbd_uri import is_nbd_uri, parse_nbd_uri

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
    return _open_raw(what, options, pool)


def _open_raw(what: str, options: SourceOptions, pool: ThreadPoolExecutor | None) -> OpenSource:
    device = RawDevice.open(what, executor=pool, drop_cache=True)
    try:
        if options.image_format is None:
            refuse_foreign(device, what)
        lock = None if options.force_share else ImageLock.for_reading(device.fileno(), what)
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
        check=_nothing if options.allow_changing else (lambda: _check_unchanged(device, before, what)),
        close=close,
        kind="block device" if device.is_block_device else "raw",
    )


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


def refuse_foreign(device: RawDevice, what: str) -> None:
    """A raw file with another format's magic is either not raw, or a guest's trick: the user must say."""
    if stat.S_ISBLK(os.fstat(device.fileno()).st_mode):
        return
    head = os.pread(device.fileno(), HEAD_BYTES, 0)
    tail = os.pread(device.fileno(), TAIL_BYTES, max(0, device.size - TAIL_BYTES))
    found = image_format(head, tail)
    if found is not None:
        raise SourceError(
            f"{what} looks like a {found} image, and its contents are not the disk; --format raw takes it as it is"
        )


def _check_unchanged(device: RawDevice, before: Fingerprint | None, what: str) -> None:
    if before is None:
        return
    try:
        after = device.fingerprint()
    except OSError as error:
        raise SourceError(f"cannot look at {what} again: {error.strerror}") from error
    if after != before:
        raise SourceChangedError(
            f"{what} changed while it was read, so what was read is not the disk of any one moment;"
            " use a snapshot, or --allow-changing if that does not matter"
        )
