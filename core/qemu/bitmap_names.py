"""What QEMU's dirty bitmaps are called that we leave in it on purpose, so that the next backup reads what has changed.

A bitmap records from the instant of a backup on, for one drive of it, and its name says which: the archive's uuid and
creation time, the parent's uuid where the archive is a delta, and the drive's name. A name is all that QEMU keeps; what
was copied to another node, or whose disk has got another name since, must not be taken for the right one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .names import PREFIX

NO_PARENT = "full"
_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{32}})-([0-9]{{1,20}})-({NO_PARENT}|[0-9a-f]{{32}})-(.+)", re.DOTALL)
"""QEMU allows 1023 bytes; a drive's name in a VMA has at most 255."""


class BitmapName(NamedTuple):
    """Since when, and of what, a bitmap records: uuids of 16 bytes, seconds since 1970, a drive's name."""

    archive: bytes
    created: int
    parent: bytes | None
    drive: str

    def __str__(self) -> str:
        parent = NO_PARENT if self.parent is None else self.parent.hex()
        return f"{PREFIX}{self.archive.hex()}-{self.created}-{parent}-{self.drive}"


def parse_bitmap_name(name: str) -> BitmapName | None:
    """What the name of a bitmap tells; None if it is not ours."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    parent = None if match[3] == NO_PARENT else bytes.fromhex(match[3])
    return BitmapName(bytes.fromhex(match[1]), int(match[2]), parent, match[4])
