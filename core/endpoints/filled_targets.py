"""What a drive is restored to while guests use it: a new raw file, or a block device, and the map of what is there.

The map is there, durably, before the disk is anything that could be taken for whole: a file gets its length after it,
and of a block device nothing is changed before. Where a map is found, the restore goes on where it was, if archive and
disk are those that it names.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from pybackup.core.archive.identity import ArchiveIdentity, Reference
from pybackup.core.cow.copy_before_access import CopyBeforeAccess
from pybackup.core.cow.presence_file import SUFFIX, PresenceFile
from pybackup.core.device import BlockDevice
from pybackup.core.devices.raw import RawDevice
from pybackup.core.errors import Advice, BusyError, RequestError, TargetError
from pybackup.core.images.probe import suffix_format
from pybackup.core.places.kinds import LocalPath, TargetPlace
from pybackup.core.sinks.output_place import OutputPlace, open_place
from pybackup.core.sinks.replaced import DISKS, check_replaced
from pybackup.core.sinks.stream import is_stream
from pybackup.core.sinks.target_failure import target_failure
from pybackup.core.system import disk_identity
from pybackup.core.system.device_in_use import claim
from pybackup.core.system.image_lock import ImageLock
from pybackup.core.system.in_memory import lies_in_memory
from pybackup.formats.restoring_map import BLOCK, FILE, RestoringHeader
from pybackup.formats.vma import DriveInfo

from .open_targets import refuse_used

LONGEST_NAME = 1000
"""Characters of the archive's name that a map tells."""


@dataclass(frozen=True, slots=True)
class FillOptions:
    """How disks are opened that fill while they are used.

    ``replace``: what is on a block device. ``map_path``: of the only disk's map, where it is
    not to lie beside the disk. ``keeps_reads``: what guests read is kept on the disk.
    """

    replace: bool = False
    map_path: str | None = None
    keeps_reads: bool = True


@dataclass(frozen=True, slots=True)
class FilledTarget:
    """A disk that fills. ``is_resumed``: whether it was begun before. ``map_path``: None where all is there."""

    device: CopyBeforeAccess
    path: str
    map_path: str | None
    is_resumed: bool


async def open_filled(
    plan: Mapping[DriveInfo, TargetPlace],
    sources: Mapping[str, BlockDevice],
    archive: ArchiveIdentity,
    options: FillOptions,
    stack: AsyncExitStack,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, FilledTarget]:
    """The disks by their drives' names, of which only what is necessary was changed (TargetError, BusyError,
    RequestError). ``stack`` closes them, and what keeps others from using them."""
    if options.map_path is not None and len(plan) > 1:
        raise RequestError("one map is of one drive: choose one")
    opener = _Opener(sources, archive, options, stack, warn)
    paths = {drive: _path_of(place) for drive, place in plan.items()}
    maps = {drive: opener.map_at(path) for drive, path in paths.items()}
    found = {drive.name: opener.resume(path, drive, record) for drive, path in paths.items() if (record := maps[drive])}
    # A restore of several disks gives up its maps when all of them are complete, and may have been killed meanwhile.
    all_there = bool(found) and all(one.device.is_whole for one in found.values())
    for drive, path in paths.items():
        if drive.name not in found:
            is_done = all_there and os.path.exists(path)
            found[drive.name] = opener.complete(path, drive) if is_done else opener.begin(path, drive)
    return {drive.name: found[drive.name] for drive in plan}


def _path_of(place: TargetPlace) -> str:
    """The path of what can be filled (RequestError)."""
    if not isinstance(place, LocalPath) or is_stream(place):
        raise RequestError(f"{place} cannot fill while it is used: name a new file, or a block device")
    if (image_format := suffix_format(place.path)) is not None:
        raise RequestError(
            f"{place} would be a {image_format} image by its name, and only a raw disk can fill while it is used"
        )
    return place.path


class _Opener:
    """Opens disks for one restore. Fixed: all."""

    def __init__(
        self,
        sources: Mapping[str, BlockDevice],
        archive: ArchiveIdentity,
        options: FillOptions,
        stack: AsyncExitStack,
        warn: Callable[[str], None],
    ) -> None:
        assert archive.digest is not None
        self._sources, self._archive, self._options = sources, archive, options
        self._digest = archive.digest
        self._stack, self._warn = stack, warn

    def map_at(self, path: str) -> PresenceFile | None:
        """The map of a disk, where there is one."""
        record = PresenceFile.open(self._map_path(os.path.realpath(path)))
        if record is not None:
            self._stack.push_async_callback(record.close)
        return record

    def _map_path(self, path: str) -> str:
        return self._options.map_path or path + SUFFIX

    # -- on --

    def resume(self, path: str, drive: DriveInfo, record: PresenceFile) -> FilledTarget:
        """Go on with what was begun (TargetError where the map is of something else)."""
        self._check_archive(record, drive)
        path = os.path.realpath(path)
        is_file = record.header.kind == FILE
        if is_file and (not os.path.exists(path) or not os.path.getsize(path)):
            return self._begin_anew(path, drive, record)
        device = self._open(path)
        if not record.is_current():  # before the disk was ours, its last user wrote it anew, or removed it
            raise BusyError(f"{path} was in use until just now: try it again")
        if device.is_block_device == is_file or not _is_same_disk(device.fileno(), record.header):
            raise TargetError(f"{path} is not the disk that {record.path} belongs to: it was replaced, or is another")
        _check_size(device, drive, exactly=is_file)
        return self._filled(device, path, drive, record, there=record.there())

    def _check_archive(self, record: PresenceFile, drive: DriveInfo) -> None:
        told = record.header
        reference = Reference(bytes.fromhex(told.archive), bytes.fromhex(told.index))
        if not self._archive.answers(reference):
            raise TargetError(
                f"{record.path} belongs to a restore from another archive, {told.archive_name} (uuid"
                f" {UUID(hex=told.archive)}): go on with that, or remove the disk and its map"
            )
        if (told.drive, told.size) != (drive.name, drive.size):
            raise TargetError(f"{record.path} belongs to drive {told.drive} of {told.archive_name}, not {drive.name}")

    def _begin_anew(self, path: str, drive: DriveInfo, record: PresenceFile) -> FilledTarget:
        """The disk is not there, or has no length: right only where it was killed before it got any."""
        if any(True for _ in record.there()):
            raise TargetError(f"{path} is gone, and {record.path} tells that parts of it were there")
        with ExitStack() as stack:
            if os.path.exists(path):
                _lock_empty(path, record, stack)
            record.remove_now()
            if os.path.exists(path):
                os.unlink(path)
        return self.begin(path, drive)

    def complete(self, path: str, drive: DriveInfo) -> FilledTarget:
        """A disk of which all is there."""
        path = os.path.realpath(path)
        device = self._open(path)
        _check_size(device, drive, exactly=not device.is_block_device)
        whole = [(0, drive.clusters)]
        filled = CopyBeforeAccess(device, self._sources[drive.name], is_new=False, there=whole)
        return FilledTarget(filled, path, None, is_resumed=True)

    # -- from the beginning --

    def begin(self, path: str, drive: DriveInfo) -> FilledTarget:
        """A new disk, or an old one of which nothing counts any more."""
        if os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode):
            return self._begin_device(path, drive)
        return self._begin_file(path, drive)

    def _begin_device(self, path: str, drive: DriveInfo) -> FilledTarget:
        refuse_used(path)
        if not self._options.replace:
            raise TargetError(f"{path} is a block device", advice=Advice.OVERWRITE_ALL)
        if self._options.map_path is None:
            raise TargetError(
                f"what is there of {path} has to be remembered in a file that survives a power failure, as those in"
                " /dev do not",
                advice=Advice.NAME_MAP,
            )
        device = self._open(path)
        _check_size(device, drive, exactly=False)
        record = self._new_map(self._options.map_path, drive, BLOCK, disk_identity.told_of(device.fileno()))
        if lies_in_memory(record.fileno()):
            record.remove_now()
            raise TargetError(f"{record.path} lies in memory, and would be lost with the power", advice=Advice.NAME_MAP)
        return self._filled(device, path, drive, record)

    def _begin_file(self, path: str, drive: DriveInfo) -> FilledTarget:
        place = open_place(path)
        try:
            _refuse_what_is_there(place, path)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(place.name, flags, 0o666, dir_fd=place.fd)
            try:
                record = self._make_file(fd, place, drive)
                made = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise target_failure(path, error, "create") from error
        finally:
            place.close()
        device = self._open(place.path)
        if not record.is_current() or not os.path.samestat(made, os.fstat(device.fileno())):
            raise BusyError(f"{path} was in use until just now: try it again")
        return self._filled(device, place.path, drive, record, is_new=True)

    def _make_file(self, fd: int, place: OutputPlace, drive: DriveInfo) -> PresenceFile:
        """Make a disk of an empty file, after its map; neither is left where that fails (TargetError, OSError)."""
        record = None
        try:
            place.sync()
            record = self._new_map(self._map_path(place.path), drive, FILE, disk_identity.told_of(fd))
            disk_identity.mark(fd, record.header.map_id)
            os.ftruncate(fd, drive.size)
            os.fsync(fd)
            return record
        except BaseException:
            os.unlink(place.name, dir_fd=place.fd)
            if record is not None:
                record.remove_now()
            raise

    def _new_map(self, map_path: str, drive: DriveInfo, kind: str, target: str) -> PresenceFile:
        header = RestoringHeader(
            archive=self._archive.uuid.hex(),
            index=self._digest.hex(),
            archive_name=self._archive.name[:LONGEST_NAME],
            drive=drive.name,
            size=drive.size,
            map_id=os.urandom(16).hex(),
            kind=kind,
            target=target,
        )
        record = PresenceFile.create(map_path, header)
        self._stack.push_async_callback(record.close)
        return record

    def _filled(
        self,
        device: RawDevice,
        path: str,
        drive: DriveInfo,
        record: PresenceFile,
        *,
        is_new: bool = False,
        there: Iterable[tuple[int, int]] | None = None,
    ) -> FilledTarget:
        """``there``: None for a disk that begins now."""
        record.before_removed = partial(disk_identity.mark_whole, device.fileno(), record.header.map_id)
        record.when_removed = partial(disk_identity.unmark, device.fileno())
        filled = CopyBeforeAccess(
            device,
            self._sources[drive.name],
            is_new=is_new,
            record=record,
            there=there or (),
            keeps_reads=self._options.keeps_reads,
        )
        return FilledTarget(filled, path, record.path, is_resumed=there is not None)

    def _open(self, path: str) -> RawDevice:
        """The disk, locked and claimed (TargetError, BusyError)."""
        device = RawDevice.open(path, writable=True, failure=TargetError)
        self._stack.push_async_callback(device.close)
        lock = self._stack.enter_context(ImageLock.for_writing(device.fileno(), path))
        if lock.note:
            self._warn(lock.note)
        try:
            claimed = claim(path)
        except OSError as error:
            raise target_failure(path, error, "use") from error
        if claimed is not None:
            self._stack.callback(os.close, claimed)
        return device


def _lock_empty(path: str, record: PresenceFile, stack: ExitStack) -> None:
    """Nobody else begins with an empty file as long as ``stack`` is open (BusyError, TargetError).

    Another one who has just made it and its map, and not locked it yet, finds out that it is not its own any more.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, fd)
        stack.enter_context(ImageLock.for_writing(fd, path))
        is_empty = os.fstat(fd).st_size == 0
    except OSError as error:
        raise target_failure(path, error, "open") from error
    if not is_empty or not record.is_current():
        raise BusyError(f"{path} is in use: another restore to it has just begun")


def _refuse_what_is_there(place: OutputPlace, path: str) -> None:
    """A file is never replaced, not even when that is asked for (TargetError, OSError).

    The same command goes on with what was begun. If it replaced what is there, it would one day, when all was there
    already and its map was gone, replace what guests have written since.
    """
    if check_replaced(place, path, DISKS, replace=True) is not None:
        raise TargetError(
            f"{path} exists already, and a live restore replaces no file: remove it first, if you mean it"
        )


def _is_same_disk(fd: int, told: RestoringHeader) -> bool:
    """Whether an open disk is the one that a map tells of; a new file may have the inode of one that was removed."""
    mark = disk_identity.mark_of(fd) if told.kind == FILE else None
    return mark == told.map_id if mark is not None else disk_identity.told_of(fd) == told.target


def _check_size(device: RawDevice, drive: DriveInfo, *, exactly: bool) -> None:
    if device.size < drive.size or (exactly and device.size > drive.size):
        raise TargetError(
            f"{device.name} has the wrong size: it has {device.size:,} bytes, the drive has {drive.size:,}"
        )
