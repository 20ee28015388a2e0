"""Names for drives: as the user gave them, or made of their files' names."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from typing import Protocol, TypeVar

from blake3 import blake3

from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import (
    LibvirtDomain,
    LocalPath,
    NbdUri,
    RunningQemu,
    RunningServer,
    ServedPlace,
    SourcePlace,
    StandardInput,
)
from pybackup.formats.text import storable, utf8_bytes

W = TypeVar("W", covariant=True)
ORIGIN_SIZE = 8
LONGEST = 100
"""Characters of a name made of an export's, which may have thousands."""


class NamedPlace(Protocol[W]):
    """A place that may have been given a name."""

    @property
    def name(self) -> str | None:
        """The name, if one was given."""
        ...

    @property
    def what(self) -> W:
        """The place itself."""
        ...


def drive_name(source: NamedPlace[SourcePlace | ServedPlace]) -> str:
    """The name given; or that of the export, or the file's name up to its first dot, as stored_name() has it."""
    if source.name:
        return stored_name(source.name)
    match source.what:
        case StandardInput():
            return "stdin"
        case NbdUri(_, address):
            export = os.path.basename(address.export)
            return re.sub(r"[^A-Za-z0-9_.-]+", "-", export).strip(".-")[:LONGEST] or "nbd"
        case place:
            return stored_name(os.path.basename(place.text).lstrip(".").split(".")[0]) or "drive"


def stored_name(name: str) -> str:
    """A file's name as an archive holds it, the same in every locale: its bytes, where they are UTF-8.

    Else it is what the locale takes it for, and a byte that is no text stands there as %XX.
    """
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return storable(name)


def file_name(name: str) -> str:
    """The name of a file for a name in an archive: it has the same bytes, whatever the locale."""
    return os.fsdecode(utf8_bytes(name))


def source_label(what: SourcePlace | ServedPlace) -> str:
    """What an archive tells of its source: the last part of a path or URI, without where it lies."""
    return stored_name(os.path.basename(what.address.export if isinstance(what, NbdUri) else what.text))


def origin_of(name: str, what: SourcePlace, disk: str = "") -> str:
    """What tells a disk from those of the same name that lie elsewhere, without telling where: some hexadecimal digits.

    By the machine that we run on, and by where the disk is named there; ``disk`` tells it from others of that place.
    """
    match what:
        case LocalPath(path):
            where = os.path.abspath(path)
        case RunningServer(path) | RunningQemu(path):
            where = f"{os.path.abspath(path)}\0{disk}"
        case LibvirtDomain(domain):
            where = f"{domain}\0{disk}"
        case StandardInput():
            where = name
        case _:
            where = what.text
    told = "\0".join((socket.gethostname(), type(what).__name__, where))
    return blake3(os.fsencode(told)).hexdigest(length=ORIGIN_SIZE)


def unique_drive_names(sources: Sequence[NamedPlace[SourcePlace | ServedPlace]]) -> list[str]:
    """drive_name() of each; RequestError if two are alike."""
    names = [drive_name(source) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two drives are called {name!r}; give them names: NAME=SOURCE")
    return names
