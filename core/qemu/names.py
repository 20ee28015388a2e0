"""What a run's nodes, jobs, exports and bitmaps in QEMU are called, and its folder: so that they are known again.

A name is all that QEMU keeps of who made something. Others use names with ``pybackup-`` too, and a date has eight
digits; so the run's number carries its own checksum, which a name by chance does not have.
"""

from __future__ import annotations

import re
import secrets
import zlib
from typing import NamedTuple

PREFIX = "pybackup-"
_SHARED = "s"
"""Stands before the number in names of a run that shares QEMU's NBD server with others."""
_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{12}})-({_SHARED}?)\d+(?:-[a-z]+)?")
_FOLDER = re.compile(rf"{PREFIX}([0-9a-f]{{12}})")


class Made(NamedTuple):
    """Which run made something, and whether that run shares QEMU's NBD server with others."""

    run: str
    shared: bool


def new_run() -> str:
    """A number for a run, in hexadecimal: four bytes by chance, and two of their checksum."""
    chance = secrets.token_hex(4)
    return chance + _checksum(chance)


def is_run(text: str) -> bool:
    """Whether this is a number that new_run() can have made."""
    return len(text) == 12 and _checksum(text[:8]) == text[8:]


def _checksum(text: str) -> str:
    return f"{zlib.crc32(f'{PREFIX}{text}'.encode()) & 0xFFFF:04x}"


def folder_name(run: str) -> str:
    """What a run's private folder is called."""
    return f"{PREFIX}{run}"


def run_of_folder(name: str) -> str | None:
    """The run whose folder has this name."""
    match = _FOLDER.fullmatch(name)
    return match[1] if match and is_run(match[1]) else None


def disk_name(run: str, number: int, *, shared: bool) -> str:
    """The name of a disk's image, job and export in QEMU, where names of nodes have at most 31 characters."""
    return f"{PREFIX}{run}-{_SHARED if shared else ''}{number}"


def copy_name(name: str) -> str:
    """Of the bitmap that holds what had changed at the instant, while the run lasts; ``name`` is the disk's."""
    return f"{name}-changed"


def recording_name(name: str) -> str:
    """Of the bitmap that records from the instant on, until the archive is there; ``name`` is the disk's."""
    return f"{name}-recording"


def maker_of(name: str) -> Made | None:
    """Who has made what has this name, or a longer one that begins with it; None if it is not ours."""
    match = _NAME.fullmatch(name)
    return Made(match[1], bool(match[2])) if match and is_run(match[1]) else None
