"""Who an encrypted archive is, as far as its header tells everybody: for those who have no key."""

from __future__ import annotations

from pybackup.core.errors import ArchiveError
from pybackup.core.places.kinds import LocalPath, StoreUrl
from pybackup.formats.errors import FormatError
from pybackup.formats.public_facts import PublicFacts, facts_in
from pybackup.formats.vma import DriveInfo, Header

from .encrypted_file import HEAD, read_header
from .identity import ArchiveIdentity
from .open import RangeReader, file_ranges

MOST_DRIVES = 254


def public_identity(archive: LocalPath | StoreUrl) -> ArchiveIdentity | None:
    """Who an encrypted archive says that it is, which nobody proves; None where it says nothing (ArchiveError)."""
    with file_ranges(archive) as file:
        return public_identity_in(file, str(archive))


def public_identity_in(file: RangeReader, name: str) -> ArchiveIdentity | None:
    """The same of a file that is open (ArchiveError)."""
    try:
        facts = facts_in(read_header(file.pread, file.size, file.pread(0, min(file.size, HEAD))).stanzas)
        return None if facts is None else ArchiveIdentity(name, _header(facts), None, file.size, is_public=True)
    except FormatError as error:
        raise ArchiveError(f"{name}: {error}") from error
    except OSError as error:
        raise ArchiveError(f"cannot read {name}: {error.strerror or error}") from error


def _header(facts: PublicFacts) -> Header:
    """As far as the facts are a header's (FormatError)."""
    names = {name for name, _ in facts.drives}
    if len(names) < len(facts.drives) or len(names) > MOST_DRIVES or not all(size for _, size in facts.drives):
        raise FormatError("what its header tells everybody is damaged")
    drives = tuple(DriveInfo(number, name, size) for number, (name, size) in enumerate(facts.drives, 1))
    uuid, digest = facts.parent or (bytes(16), bytes(16))
    is_delta = facts.parent is not None
    return Header(facts.uuid, facts.created, drives, parent_uuid=uuid, parent_index_digest=digest, is_delta=is_delta)
