"""Who an archive is, and whose delta: its header and its directory, and nothing more of it.

An archive's uuid names the backup, the digest of its directory names the file: a chain that was merged into one file
is the same backup in another file, which says whom it replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pybackup.core.places.kinds import ArchivePlace
from pybackup.formats.vma import DriveInfo, Header

from .encrypted_file import check_public_facts
from .index import ArchiveIndex, NoIndexError
from .open import has_ranges, open_archive, range_reader
from .stream import Digests

DIGEST_SIZE = 16
MOST_REPLACED = 4096
"""Archives that one can replace: more are none of ours."""


class Reference(NamedTuple):
    """What a delta knows of its parent: the uuid, and the digest of the directory; 16 bytes each."""

    uuid: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class ArchiveIdentity:
    """What tells one archive from others. ``digest`` is None where there is no index: such a one is nobody's parent.

    ``size``: bytes of the file, None where it came through a pipe. ``replaces``: digests of directories of the same
    uuid whose place it takes. ``about``: what the directory tells, which may be anything. ``is_public``: it is
    encrypted, and this is what its header tells everybody.
    """

    name: str
    header: Header
    digest: bytes | None
    size: int | None = None
    about: dict[str, Any] = field(default_factory=dict)
    is_public: bool = False

    @property
    def uuid(self) -> bytes:
        """Of the backup."""
        return self.header.uuid

    @property
    def created(self) -> int:
        """Seconds since 1970."""
        return self.header.created

    @property
    def drives(self) -> Sequence[DriveInfo]:
        """The drives of the backup, also those of which a delta holds nothing."""
        return self.header.drives

    @property
    def is_delta(self) -> bool:
        """Whether it needs its parent."""
        return self.header.is_delta

    @property
    def parent(self) -> Reference | None:
        """The parent of a delta."""
        return Reference(self.header.parent_uuid, self.header.parent_index_digest) if self.is_delta else None

    @property
    def reference(self) -> Reference | None:
        """By which a delta of it would know it."""
        return None if self.digest is None else Reference(self.uuid, self.digest)

    @property
    def replaces(self) -> frozenset[bytes]:
        """Digests of the directories of archives of this uuid which it can stand for."""
        told = self.about.get("replaces")
        if not isinstance(told, list):
            return frozenset()
        return frozenset(digest for one in told[:MOST_REPLACED] if (digest := from_hex(one, DIGEST_SIZE)) is not None)

    @property
    def chain(self) -> int:
        """Deltas up to this one and with it, as the archive tells: 0 for a full archive."""
        told = self.about.get("chain")
        return told if self.is_delta and isinstance(told, int) and 0 < told < 1 << 32 else int(self.is_delta)

    @property
    def likely_parent(self) -> str | None:
        """The name that the parent's file had, as far as the archive tells one that can be a name in a folder."""
        told = self.about.get("parent")
        name = told.get("name") if isinstance(told, dict) else None
        is_name = isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
        return name if is_name else None

    def answers(self, reference: Reference) -> bool:
        """Whether it is the parent that a delta names, or stands for it; by public facts alone: whether it may be."""
        if self.is_public:
            return reference.uuid == self.uuid
        if self.digest is None or reference.uuid != self.uuid:
            return False
        return reference.digest == self.digest or reference.digest in self.replaces


def from_hex(told: object, size: int) -> bytes | None:
    """So many bytes, from what should be their hexadecimal digits."""
    if not isinstance(told, str) or len(told) != 2 * size:
        return None
    try:
        found = bytes.fromhex(told)
    except ValueError:
        return None
    # Digits with blanks between them are fewer.
    return found if len(found) == size else None


def identity_of_index(archive: ArchiveIndex) -> ArchiveIdentity:
    """The identity of an archive that is open."""
    return ArchiveIdentity(archive.name, archive.header, archive.digest, archive.size, archive.directory.about)


def read_identity(archive: ArchivePlace) -> ArchiveIdentity:
    """Who an archive is (ArchiveError). At most its header and its directory are read, where it lies in a file."""
    if has_ranges(archive):
        with range_reader(archive) as source:
            try:
                index = ArchiveIndex(source.pread, source.size, str(archive), allow_delta=True)
                check_public_facts(source.encryption, index.header, str(archive))
                return identity_of_index(index)
            except NoIndexError:
                size: int | None = source.size
    else:
        size = None
    with open_archive(archive, threads=1, digests=Digests.NONE, allow_delta=True) as stream:
        return ArchiveIdentity(str(archive), stream.header, None, size)
