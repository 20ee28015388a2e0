"""Opens what a drive is restored to, with the rules that keep a restore from destroying what nobody meant.

Nobody who uses a disk, or an image that would be replaced, has it taken from under them: it is refused where it is
mounted, otherwise in use, or locked by another program. What is overwritten has to be asked for. A disk that is too
small, a file that exists, and one that is an archive are refused by the targets themselves, when they begin.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from pybackup.core.cow.presence_file import refuse_incomplete
from pybackup.core.devices.raw import RawDevice
from pybackup.core.errors import Advice, RequestError, TargetError
from pybackup.core.images.probe import suffix_format
from pybackup.core.places.kinds import ArchivePlace, LocalPath, NbdUri, ShellCommand, StandardStream, TargetPlace
from pybackup.core.places.same_file import is_same_file
from pybackup.core.sinks.command import CommandSink
from pybackup.core.sinks.stream import StreamSink, is_stream
from pybackup.core.sinks.target_failure import target_failure
from pybackup.core.system.device_in_use import disk_in_use, loop_over
from pybackup.core.system.image_lock import ImageLock

from .image_targets import NbdExport, NewImage
from .targets import ExistingDisk, NewFile, RestoreTarget, Stream


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """How targets are opened.

    ``image_format``: of new files, by QEMU's name or raw; None: as the file's name says. ``replace``: files that
    exist, and what is on disks and exports.
    """

    image_format: str | None = None
    replace: bool = False


def open_target(
    place: TargetPlace, options: TargetOptions, stack: ExitStack, warn: Callable[[str], None] = lambda _: None
) -> RestoreTarget:
    """The target, of which nothing is changed yet (TargetError, BusyError, RequestError).

    ``stack`` holds what keeps others from using it meanwhile, and is closed after the restore. ``warn`` is told where
    they cannot be kept from it.
    """
    told = options.image_format
    if told not in (None, "raw") and not (isinstance(place, LocalPath) and _is_file_or_new(place)):
        raise RequestError(f"{told} images are made as new files, and {place} is none")
    match place:
        case NbdUri():
            return NbdExport(place, force=options.replace)
        case ShellCommand(command):
            return Stream(CommandSink(command))
        case StandardStream():
            return Stream(StreamSink(place))
        case LocalPath(path):
            if is_stream(place):
                return Stream(StreamSink(place))
            refuse_incomplete(path, TargetError)
            if _is_block_device(path):
                return _open_block_device(path, options.replace, stack, warn)
            return _open_file(path, options, stack)


def _open_file(path: str, options: TargetOptions, stack: ExitStack) -> RestoreTarget:
    if options.replace and os.path.isfile(path):
        lock_replaced(path, stack)
    image_format = options.image_format or suffix_format(path) or "raw"
    if image_format == "raw":
        return NewFile(path, replace=options.replace)
    return NewImage(path, image_format, replace=options.replace)


def refuse_own_archive(archive: ArchivePlace, places: Iterable[TargetPlace]) -> None:
    """No drive replaces the archive that it is read from (RequestError)."""
    if any(is_same_file(place, archive) for place in places):
        raise RequestError(f"{archive} would be replaced by what is restored from it")


def _is_file_or_new(place: LocalPath) -> bool:
    return not _is_block_device(place.path) and not is_stream(place)


def _is_block_device(path: str) -> bool:
    return os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)


def lock_replaced(path: str, stack: ExitStack) -> None:
    """Refuse to replace an image that a program uses: it would go on with the old one, which has no name any more.

    So would who mounts a loop device over it, and another drive that is restored to that.
    """
    refuse_used(path)
    try:
        if (loop := loop_over(path)) is not None:
            raise TargetError(f"{path} is in use: it is behind {loop}; `losetup -d {loop}` lets go of it")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        stack.enter_context(ImageLock.for_writing(fd, path))
    except OSError as error:
        raise target_failure(path, error, "look at") from error


def refuse_used(path: str) -> None:
    """Refuse a device, or the file behind a loop device, that is mounted or otherwise in use."""
    try:
        reason = disk_in_use(path)
    except OSError as error:
        raise target_failure(path, error, "look at") from error
    if reason is not None:
        raise TargetError(f"{path} is in use: {reason}")


def _open_block_device(path: str, replace: bool, stack: ExitStack, warn: Callable[[str], None]) -> RestoreTarget:
    refuse_used(path)
    if not replace:
        raise TargetError(f"{path} is a block device", advice=Advice.OVERWRITE_ALL)
    device = RawDevice.open(path, writable=True, failure=TargetError)
    lock = stack.enter_context(ImageLock.for_writing(device.fileno(), path))
    if lock.note:
        warn(lock.note)
    return ExistingDisk(device)
