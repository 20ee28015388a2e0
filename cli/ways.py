"""How the drives of an incremental backup came into the archive, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pybackup.core.jobs.changes import BY_BITMAP, BY_DIGEST, BY_SERVER, FULL, DriveWay

_WORDS = {
    FULL: "stored whole",
    BY_DIGEST: "read whole, and compared with the parent's digests",
    BY_BITMAP: "read where QEMU's dirty bitmap says that it changed",
    BY_SERVER: "read where the server saw it change",
}


def ways_in_words(ways: Mapping[str, DriveWay]) -> Iterator[str]:
    """A line for the drives that came in the same way for the same reason; none, where nothing else was wished for."""
    if all(way == DriveWay() for way in ways.values()):
        return
    together: dict[DriveWay, list[str]] = {}
    for name, way in ways.items():
        together.setdefault(way, []).append(name)
    for way, names in together.items():
        yield f"{', '.join(names)}: {_WORDS[way.way]}" + (f": {way.why}" if way.why else "")
