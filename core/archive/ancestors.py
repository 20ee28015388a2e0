"""The archives that a delta needs, as far as they are there, for whoever tells about it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from pybackup.core.errors import ArchiveError
from pybackup.core.places.kinds import ArchivePlace, LocalPath, StoreUrl

from .chain import MOST_ARCHIVES, Link, ParentSearch, open_chain
from .identity import ArchiveIdentity, read_identity
from .index import NoIndexError
from .open import connections_kept


@dataclass(slots=True)
class Ancestors:
    """Parent, grandparent and so on, the parent first; ``missing`` tells of the first that is not there, and why."""

    found: list[Link] = field(default_factory=list)
    missing: ArchiveError | None = None


def ancestors_of(child: ArchiveIdentity, lies_at: ArchivePlace, search: ParentSearch) -> Ancestors:
    """Look for all ancestors of an archive; only their headers and directories are read."""
    with connections_kept(lies_at):
        return _look(child, lies_at, search)


def _look(child: ArchiveIdentity, lies_at: ArchivePlace, search: ParentSearch) -> Ancestors:
    told = Ancestors()
    seen = {child.digest}
    try:
        while child.is_delta:
            place = search.find(child, lies_at if isinstance(lies_at, LocalPath | StoreUrl) else None)
            identity = read_identity(place)
            if identity.digest in seen or len(told.found) == MOST_ARCHIVES:
                raise ArchiveError(f"{place} is damaged: it is its own ancestor, or has too many")
            seen.add(identity.digest)
            told.found.append(Link(place, identity))
            child, lies_at = identity, place
    except ArchiveError as error:
        told.missing = error
    return told


def check_whole(archive: LocalPath | StoreUrl, search: ParentSearch) -> list[Link]:
    """Prove by the indexes that every cluster of every drive is in an archive or its ancestors, which it returns.

    ArchiveError where one is not, or where an ancestor is missing or damaged.
    """
    with ExitStack() as stack:
        try:
            chain = stack.enter_context(open_chain(archive, search))
        except NoIndexError as error:
            raise ArchiveError(
                f"{archive} holds only what changed since its parent, and cannot be read together with that: {error}"
            ) from None
        for drive in chain.view.header.drives:
            for _ in chain.view.walk(drive.drive_id):
                """Whoever walks over a drive is told of a cluster that is missing."""
        return list(chain.links[1:])
