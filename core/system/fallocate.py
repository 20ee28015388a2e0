"""Zeros and holes without writing bytes: fallocate(2) and BLKDISCARD, which Python's os module does not offer.

Since Linux 4.9 fallocate works on block devices too, keeps their page cache true, and there PUNCH_HOLE never
falls back to writing zeros (block/fops.c: BLKDEV_ZERO_NOFALLBACK), whereas ZERO_RANGE may.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10
"""Modes from linux/falloc.h."""

BLKDISCARD = 0x1277
"""ioctl from linux/fs.h; the argument is two u64: offset and length in bytes."""

BLKSSZGET = 0x1268
"""ioctl from linux/fs.h; the answer is an int: the logical block size in bytes."""

UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENODEV, errno.EPERM})
"""What filesystems, devices and sandboxes answer to a call that they do not have. Nothing was changed then."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make ``length`` bytes (at least 1) read as zeros and give their space back. Raises OSError."""
    _fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make ``length`` bytes (at least 1) read as zeros and keep space for them. Raises OSError."""
    _fallocate(fd, ZERO_RANGE | KEEP_SIZE, offset, length)


def discard_blocks(fd: int, offset: int, length: int) -> None:
    """Tell a block device that whole logical blocks are not needed. Raises OSError."""
    fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", offset, length))


def logical_block_size(fd: int) -> int:
    """The unit, in bytes, that a block device can address. Raises OSError."""
    (size,) = struct.unpack("=i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))
    return int(size)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    while _libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
