"""Which format a source is read as: what the user says, or what its name and its first bytes say with one voice.

| | the name says nothing, .img, .raw | the name says a format |
|---|---|---|
| no magic | raw | refused: the file is not what it is called |
| a magic | refused: raw or not, the user must say | that format, where both are the same |

An archive is no disk, though it could be taken for a raw one: its beginning, its end or its name tells it.

A block device is raw unless the user says otherwise, for whoever uses the disk can write any magic to it. The name
alone is nothing that the disk's user can write.
"""

from __future__ import annotations

import os
import stat

from pybackup.core.errors import Advice, SourceError
from pybackup.core.sinks.archive_evidence import archive_evidence

from .probe import HEAD_BYTES, TAIL_BYTES, image_format, suffix_format

FORMATS = ("qcow2", "qcow", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels")
"""QEMU's names of the formats, beside raw, that are read and made."""
ALIASES = {"vhd": "vpc"}
SECTOR = 512
"""Bytes: the magics of all formats lie in the first one."""


def source_format(path: str, told: str | None, *, skip_unreadable: bool = False) -> str:
    """The format of the file or block device at ``path``, "raw" for a disk byte for byte (SourceError).

    ``skip_unreadable``: bytes that cannot be read are no magic.
    """
    is_file = _is_file(path)
    if told is not None:
        return ALIASES.get(told, told)
    if not is_file:
        return "raw"
    head, tail = head_and_tail(path, skip_unreadable)
    said, found = suffix_format(path), image_format(head, tail)
    if (evidence := archive_evidence(path, head, tail)) is not None:
        raise SourceError(f"{path} {evidence}, not a disk", advice=Advice.RESTORE_FIRST)
    if said == found:
        return said or "raw"
    if said is None:
        raise SourceError(
            f"{path} looks like a {found} image, and its name does not say so",
            advice=Advice.DISK_IN_IMAGE,
            about=str(found),
        )
    looks = f"looks like {found}" if found else "does not look like that"
    advice = Advice.THIS_FORMAT_OR_RAW if found else Advice.RAW_BYTES
    raise SourceError(f"{path} is called a {said} image and {looks}", advice=advice, about=found or "")


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise _cannot_open(path, error) from error


def head_and_tail(path: str, skip_unreadable: bool = False) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file, by which its format is known (SourceError).

    What cannot be read is missing, where that may be skipped.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        size = os.fstat(fd).st_size
        head = _read(fd, path, 0, (HEAD_BYTES, SECTOR), skip_unreadable)
        return head, _read(fd, path, max(0, size - TAIL_BYTES), (TAIL_BYTES,), skip_unreadable)
    finally:
        os.close(fd)


def _read(fd: int, path: str, offset: int, lengths: tuple[int, ...], skip_unreadable: bool) -> bytes:
    """As many bytes as can be read, of these lengths; nothing where none can, and that may be skipped."""
    failure = None
    for length in lengths:
        try:
            return os.pread(fd, length, offset)
        except OSError as error:
            failure = error
    if skip_unreadable or failure is None:
        return b""
    sentence = f"cannot read {path} at byte {offset}: {failure.strerror}"
    raise SourceError(sentence, advice=Advice.SKIP_UNREADABLE) from failure


def _cannot_open(path: str, error: OSError) -> SourceError:
    return SourceError(f"cannot open {path}: {error.strerror}")
