"""Which image format a file seems to hold, from its bytes and its name. Nothing is opened or read here.

A file that is to be read as a raw disk, and carries another format's magic, is most likely that format; reading
it as raw would back up the container instead of the disk. The opposite is worse: a guest can write any magic into its
raw disk and make a prober open other files of the host. So this answer serves to refuse, and never to open.

LUKS, partition tables and filesystems are contents of a raw disk, and no format of ours.
"""

from __future__ import annotations

import os
import re

HEAD_BYTES = 4096
"""Bytes from the start that image_format() looks at."""

TAIL_BYTES = 512
"""Bytes from the end that image_format() looks at: the footer of a fixed VHD."""

_HEAD_MAGICS = (
    (0, b"QFI\xfb\0\0\0\1", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
)
"""(offset, magic, QEMU's name of the format); from each format's own specification."""

_ARCHIVE_MAGICS = (
    (0, b"VMA\0", "vma"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    *((0, bytes((low,)) + b"\x2a\x4d\x18", "zstd") for low in range(0x50, 0x60)),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\x89LZO", "lzop"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"BZh", "bzip2"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
)
"""What pybackup writes or reads as an archive, and what compresses one."""

_ARCHIVE_NAME = re.compile(r".*\.vma(\.(zst|zstd|gz|lzo|xz|bz2|lz4))?", re.IGNORECASE | re.DOTALL)
_SEEKABLE = b"\xb1\xea\x92\x8f"
"""The last four bytes of a seekable zstd file, as every compressed archive of ours is."""

_SUFFIXES = {
    ".qcow2": "qcow2",
    ".qcow": "qcow",
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".vhdx": "vhdx",
    ".vhd": "vpc",
    ".vpc": "vpc",
    ".qed": "qed",
    ".hdd": "parallels",
    ".hds": "parallels",
}


def image_format(head: bytes, tail: bytes = b"") -> str | None:
    """Return QEMU's name of the disk format that these bytes carry the magic of, or None.

    ``head``: the first HEAD_BYTES of the file, ``tail``: the last TAIL_BYTES; either may be shorter.
    """
    if found := _match(_HEAD_MAGICS, head):
        return found
    return "vpc" if tail[-TAIL_BYTES:].startswith(b"conectix") else None


def archive_format(head: bytes) -> str | None:
    """Return "vma" or what compresses an archive ("zstd", "gzip", "lzop"...) when these first bytes say so, or None."""
    return _match(_ARCHIVE_MAGICS, head)


def archive_evidence(name: str | os.PathLike[str], head: bytes, tail: bytes) -> str | None:
    """Return a clause that says by what a file is known as an archive, or as something compressed; None if it is not.

    A damaged byte at the beginning does not make a disk of an archive: its end and its name tell it too.
    """
    found = archive_format(head)
    if found == "vma" or _differ(head, b"VMA\0") == 1:
        return "begins like an archive"
    if _differ(tail[-len(_SEEKABLE) :], _SEEKABLE) < 2:
        return "is an archive" if found else "ends like an archive"
    if _ARCHIVE_NAME.fullmatch(os.path.basename(os.fspath(name))):
        return "is called an archive"
    if found or _differ(head, b"\x28\xb5\x2f\xfd") == 1:
        return f"is compressed with {found or 'zstd'}, as archives are"
    return None


def _differ(content: bytes, magic: bytes) -> int:
    """In how many bytes: a magic of which one is wrong is still no accident."""
    wrong = sum(one != other for one, other in zip(content, magic, strict=False))
    return wrong + max(0, len(magic) - len(content))


def suffix_format(path: str | os.PathLike[str]) -> str | None:
    """Return QEMU's name of the disk format that the file's name says, or None (also for .img and .raw)."""
    return _SUFFIXES.get(os.path.splitext(os.fspath(path))[1].lower())


def _match(magics: tuple[tuple[int, bytes, str], ...], head: bytes) -> str | None:
    return next((name for offset, magic, name in magics if head.startswith(magic, offset)), None)
