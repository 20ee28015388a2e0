"""Whole reads and whole writes of a descriptor: the kernel may do less than it was asked."""

from __future__ import annotations

import errno
import os

from pybackup.core.device import Buffer

CALL_BYTES = 32 << 20
"""Bytes asked of the kernel at once: NBD's largest request, far below Linux's limit of 2 GiB."""

_ZEROS = bytes(1 << 20)


def read_fully(fd: int, offset: int, length: int) -> bytes:
    """Read ``length`` bytes; fewer only when the file ends. Raises OSError.

    os.pread() is the cheapest way: one allocation that is not filled with zeros first (1 MiB from the page cache:
    122 us, into a bytearray 147 us).
    """
    data = os.pread(fd, min(length, CALL_BYTES), offset)
    if len(data) == length or not data:
        return data
    pieces = [data]
    done = len(data)
    while done < length and (data := os.pread(fd, min(length - done, CALL_BYTES), offset + done)):
        pieces.append(data)
        done += len(data)
    return b"".join(pieces)


def write_fully(fd: int, offset: int, data: Buffer) -> None:
    """Write all of ``data``. Raises OSError; part of it may have been written then."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            written = os.pwrite(fd, view[done : done + CALL_BYTES], offset + done)
            if written == 0:
                raise OSError(errno.EIO, "the kernel wrote nothing and gave no reason")
            done += written


def write_zero_bytes(fd: int, offset: int, length: int) -> None:
    """Write ``length`` zeros like data. Raises OSError; part of it may have been written then."""
    with memoryview(_ZEROS) as zeros:
        for start in range(0, length, len(zeros)):
            write_fully(fd, offset + start, zeros[: min(len(zeros), length - start)])
