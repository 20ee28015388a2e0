"""Freezes a raw file in use: a reflink clone (FICLONE) shares its blocks, and the filesystem copies before each write.

What the instant is worth. ioctl_ficlone(2): "Clones are atomic with regards to concurrent writes, so no locks need to
be taken to obtain a consistent cloned copy." XFS and btrfs do so by holding the lock of the file's writers, waiting for
direct I/O under way, and writing out dirty pages before they share the blocks. So a write(2) is wholly in the clone
or not at all, and one that returned before is in it: what a power failure at that instant would leave, which
filesystems and databases recover from. Writers wait while the clone is made; that takes a time that grows with the
number of the file's extents, not with its size.

The clone is a file without a name (O_TMPFILE, which both filesystems have), so the kernel frees it when its last
descriptor is closed, however the process ends; after a power failure the filesystem does, when it is mounted again.
There is nothing for a later run to find and remove. O_EXCL forbids to give it a name.

While the clone is there, a write to a shared block takes a new one: a filesystem that is full cannot take it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum

from pybackup.core.devices.raw import RawDevice
from pybackup.core.errors import SourceError
from pybackup.core.images.probe import HEAD_BYTES, TAIL_BYTES, image_format

FICLONE = 0x40049409
"""_IOW(0x94, 9, int), from linux/fs.h."""

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
"""From linux/fs.h, for 64-bit Linux. The argument is a long by its number; the kernel reads and writes an int."""

FS_NOCOW_FL = 0x00800000
"""The attribute C of chattr(1)."""

_FLAGS = struct.Struct("ixxxx")

_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EISDIR})
"""What filesystems without reflinks, or without O_TMPFILE, answer."""


class Snapshot(StrEnum):
    """What a user may want of a raw file: a snapshot where it can be had, a snapshot or nothing, or none."""

    AUTO = "auto"
    REFLINK = "reflink"
    NONE = "none"


class NoSnapshotError(SourceError):
    """There is no snapshot of this source. ``is_usual``: because it is of a kind that never has one."""

    def __init__(self, message: str, *, is_usual: bool = True) -> None:
        super().__init__(message)
        self.is_usual = is_usual


def clone(fd: int, path: str) -> int:
    """A new descriptor of a nameless clone of the open file, in the folder of ``path``. Raises OSError.

    The clone has the file's size and holes, and changes no more, whoever goes on to write to the file.
    """
    folder = os.path.dirname(os.path.realpath(path))
    cloned = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):
            _take_over_nocow(fd, cloned)
        fcntl.ioctl(cloned, FICLONE, fd)
    except BaseException:
        os.close(cloned)
        raise
    return cloned


def _take_over_nocow(fd: int, empty: int) -> None:
    """On btrfs, files share blocks only if both have the attribute C or neither; a new file has the folder's."""
    source, own = _flags(fd), _flags(empty)
    if (source ^ own) & FS_NOCOW_FL:
        fcntl.ioctl(empty, FS_IOC_SETFLAGS, _FLAGS.pack(own ^ FS_NOCOW_FL))


def _flags(fd: int) -> int:
    (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(_FLAGS.size)))
    return int(flags)


def snapshot(device: RawDevice, executor: ThreadPoolExecutor | None = None) -> RawDevice:
    """A device that is what ``device`` is at this instant and stays so; closing it gives its space back.

    Its name is the path. NoSnapshotError where there can be none. A file with another format's magic is never
    cloned: what the program that uses it has in memory, such as tables of clusters, may belong to the image.
    """
    name = device.name
    if device.is_block_device:
        raise NoSnapshotError(f"no reflink snapshot of {name}: it is a block device, and not a file")
    try:
        found = foreign_format(device)
    except OSError as error:
        raise NoSnapshotError(f"no reflink snapshot of {name}: {error.strerror}", is_usual=False) from error
    if found:
        raise NoSnapshotError(f"no reflink snapshot of {name}: it looks like a {found} image, and is not raw")
    try:
        cloned = clone(device.fileno(), name)
    except OSError as error:
        if error.errno in _CANNOT:
            raise NoSnapshotError(f"no reflink snapshot of {name}: its filesystem does not make any") from error
        raise NoSnapshotError(f"no reflink snapshot of {name}: {error.strerror}", is_usual=False) from error
    return RawDevice.adopt(cloned, name, executor=executor, drop_cache=True)


def foreign_format(device: RawDevice) -> str | None:
    """QEMU's name of the format whose magic the disk carries, or None. Raises OSError."""
    head = os.pread(device.fileno(), HEAD_BYTES, 0)
    tail = os.pread(device.fileno(), TAIL_BYTES, max(0, device.size - TAIL_BYTES))
    return image_format(head, tail)
