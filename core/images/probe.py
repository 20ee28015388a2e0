"""Which image format a file seems to hold, from its bytes and its name. Nothing is opened or read here.

A file that is to be read as a raw disk, and carries another format's magic, is most likely that format; reading
it as raw would back up the container instead of the disk. The opposite is worse: a guest can write any magic into its
raw disk and make a prober open other files of the host. So this answer serves to refuse, and never to open.

LUKS, partition tables and filesystems are contents of a raw disk, and no format of ours.
"""

from __future__ import annotations

import os

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


def suffix_format(path: str | os.PathLike[str]) -> str | None:
    """Return QEMU's name of the disk format that the file's name says, or None (also for .img and .raw)."""
    return _SUFFIXES.get(os.path.splitext(os.fspath(path))[1].lower())


def _match(magics: tuple[tuple[int, bytes, str], ...], head: bytes) -> str | None:
    return next((name for offset, magic, name in magics if head.startswith(magic, offset)), None)
