"""Small archives in a folder, full ones and deltas, with the uuids, times and parents that a test wants."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archives import about_of

from pybackup.core.archive.identity import ArchiveIdentity, read_identity
from pybackup.core.places.kinds import LocalPath
from pybackup.formats.archive import ArchiveEncoder
from pybackup.formats.clusters import scan
from pybackup.formats.vma import DriveInfo, Header

DAY = 86400
NIGHT = 1_764_208_800
"""2025-11-27 02:00 UTC."""


def archive_bytes(
    created: int,
    parent: ArchiveIdentity | None = None,
    *,
    uuid: bytes | None = None,
    replaces: Sequence[bytes] = (),
    drive: str = "disk",
    size: int = 4 << 16,
) -> bytes:
    """An archive of a small disk, of which a delta holds one cluster."""
    uuid = uuid or hashlib.md5(f"{created} {drive}".encode(), usedforsecurity=False).digest()
    reference = parent.reference if parent is not None else None
    delta: dict[str, Any] = {}
    if reference is not None:
        delta = {"is_delta": True, "parent_uuid": reference.uuid, "parent_index_digest": reference.digest}
    header = Header(uuid=uuid, created=created, drives=(DriveInfo(1, drive, size),), **delta)
    encoder = ArchiveEncoder(header, level=1, frame_size=1 << 20)
    compressor = encoder.compressor()
    content = hashlib.sha256(f"{created} {uuid!r}".encode()).digest() * 2048
    out = [encoder.start()]
    encoder.add(1, 0, list(scan(content)))
    if parent is None:
        encoder.add_zeros(1, 1, (size >> 16) - 1)
    encoder.close_extent()
    for item in encoder.ready:
        out.extend(bytes(part) for part in encoder.commit(encoder.encode(item, compressor)))
    about = about_of(encoder)
    if parent is not None and reference is not None:
        about["chain"] = parent.chain + 1
        about["parent"] = {
            "uuid": reference.uuid.hex(),
            "index": reference.digest.hex(),
            "name": Path(parent.name).name,
            "created": parent.created,
        }
    if replaces:
        about["replaces"] = [one.hex() for one in replaces]
    return b"".join((*out, *encoder.finish(about)))


def put(path: Path, created: int, parent: ArchiveIdentity | None = None, **options: Any) -> ArchiveIdentity:
    """Such an archive in a file."""
    path.write_bytes(archive_bytes(created, parent, **options))
    return read_identity(LocalPath(str(path)))


def nights(
    folder: Path, count: int, *, full_every: int, name: str = "web", begin: int = NIGHT
) -> list[ArchiveIdentity]:
    """A series, one a night: a full one, deltas upon it, again a full one..."""
    import time

    made: list[ArchiveIdentity] = []
    for number in range(count):
        created = begin + number * DAY
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(created))
        parent = None if number % full_every == 0 else made[-1]
        made.append(put(folder / f"{name}-{stamp}.vma.zst", created, parent, drive=name))
    return made
