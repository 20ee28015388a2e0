"""Which format a source is read as: what the user says, or what its name and its first bytes say with one voice.

| | the name says nothing, .img, .raw | the name says a format |
|---|---|---|
| no magic | raw | refused: the file is not what it is called |
| a magic | refused: raw or not, the user must say | that format, where both are the same |

A block device is raw unless the user says otherwise, for whoever uses the disk can write any magic to it. The name
alone is nothing that the disk's user can write.
"""

from __future__ import annotations

import os
import stat

from .devices.probe import HEAD_BYTES, TAIL_BYTES, image_format, suffix_format
from .errors import SourceError

FORMATS = ("qcow2", "qcow", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels")
"""QEMU's names of the formats, beside raw, that are read and made."""
ALIASES = {"vhd": "vpc"}


def source_format(path: str, told: str | None) -> str:
    """The format of the file or block device at ``path``, "raw" for a disk byte for byte (SourceError)."""
    is_file = _is_file(path)
    if told is not None:
        return ALIASES.get(told, told)
    if not is_file:
        return "raw"
    said, found = suffix_format(path), _magic(path)
    if said == found:
        return said or "raw"
    raw = "--format raw takes it as it is, byte for byte"
    if said is None:
        raise SourceError(
            f"{path} looks like a {found} image, and its name does not say so: --format {found} reads the disk in it,"
            f" {raw}"
        )
    looks = f"looks like {found}" if found else "does not look like that"
    other = f"--format {found} reads it as that, " if found else ""
    raise SourceError(f"{path} is called a {said} image and {looks}; {other}{raw}")


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise _cannot_open(path, error) from error


def _magic(path: str) -> str | None:
    size = os.stat(path).st_size
    return image_format(_read(path, 0, HEAD_BYTES), _read(path, max(0, size - TAIL_BYTES), TAIL_BYTES))


def _read(path: str, offset: int, length: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)
    except OSError as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: str, error: OSError) -> SourceError:
    return SourceError(f"cannot open {path}: {error.strerror}")
