"""By what a file is taken for an archive, though it may be a damaged one. Nothing is opened or read here.

Generous, where archive_signs.py is strict: this serves to keep archives from what is done to disks, that to find out
what may be replaced as an archive.
"""

from __future__ import annotations

import os
import re

TAIL_BYTES = 4
"""Bytes from the end that are looked at."""

ENCRYPTED = "age"
"""What encrypts an archive."""
_ARCHIVE_MAGICS = (
    (b"VMA\0", "vma"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    *((bytes((low,)) + b"\x2a\x4d\x18", "zstd") for low in range(0x50, 0x60)),
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x89LZO", "lzop"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"age-encr", ENCRYPTED),
)
"""What pybackup writes or reads as an archive, and what compresses one."""

_ARCHIVE_NAME = re.compile(r".*\.vma(\.(zst|zstd|gz|lzo|xz|bz2|lz4))?(\.age)?", re.IGNORECASE | re.DOTALL)
_SEEKABLE = b"\xb1\xea\x92\x8f"
"""The last four bytes of a seekable zstd file, as every compressed archive of ours is."""


def archive_format(head: bytes) -> str | None:
    """Return "vma", or what compresses or encrypts an archive ("zstd", "gzip", "age"...) when these first bytes say so.

    None where they say nothing.
    """
    return next((name for magic, name in _ARCHIVE_MAGICS if head.startswith(magic)), None)


def archive_evidence(name: str | os.PathLike[str], head: bytes, tail: bytes) -> str | None:
    """Return a clause that says by what a file is known as an archive, or as something compressed; None if it is not.

    ``head``: the first bytes of the file, ``tail``: the last TAIL_BYTES or more.
    """
    if (found := marks_of_archive(name, head, tail)) is not None:
        return found
    if archive_format(head) == ENCRYPTED:
        return "is encrypted with age, as archives are"
    compressed = archive_format(head) or ("zstd" if _differ(head, b"\x28\xb5\x2f\xfd") == 1 else None)
    return f"is compressed with {compressed}, as archives are" if compressed else None


def marks_of_archive(name: str | os.PathLike[str], head: bytes, tail: bytes) -> str | None:
    """As archive_evidence(), but what is only compressed is none.

    A damaged byte at the beginning does not make a disk of an archive: its end and its name tell it too.
    """
    found = archive_format(head)
    if found == "vma" or _differ(head, b"VMA\0") == 1:
        return "begins like an archive"
    if _differ(tail[-TAIL_BYTES:], _SEEKABLE) < 2:
        return "is an archive" if found else "ends like an archive"
    if is_archive_name(name):
        return "is called an archive"
    return None


def is_archive_name(name: str | os.PathLike[str]) -> bool:
    """Whether a file is called as archives are."""
    return _ARCHIVE_NAME.fullmatch(os.path.basename(os.fspath(name))) is not None


def _differ(content: bytes, magic: bytes) -> int:
    """In how many bytes: a magic of which one is wrong is still no accident."""
    wrong = sum(one != other for one, other in zip(content, magic, strict=False))
    return wrong + max(0, len(magic) - len(content))
