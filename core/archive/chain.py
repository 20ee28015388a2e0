"""A delta and its ancestors, found and opened: the parent lies beside its child, or in a place that was named.

Nothing is taken for a parent but the very archive that a delta was made from, or one that says that it stands for it.
"""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from pybackup.core.errors import Advice, ArchiveError, NoKeyError
from pybackup.core.places.kinds import HistoryPlace, LocalPath, StoreUrl
from pybackup.formats.vma_layout import HEADER_START

from .identity import ArchiveIdentity, Reference, identity_of_index, read_identity
from .index import ArchiveIndex, NoIndexError
from .input import decompressor_of, describe_foreign
from .kept import Kept
from .listing import Listed, archives_in
from .open import RangeReader, connections_kept, range_reader
from .scanned import ScannedIndex
from .view import ArchiveView

MOST_ARCHIVES = 1000
"""In a chain: each takes a file that is open."""
KEPT_SEGMENTS, KEPT_FRAMES = 32 << 20, 48 << 20
"""Bytes that may be kept of a chain."""


def folder_of(archive: HistoryPlace) -> HistoryPlace:
    """The folder, or the prefix, that an archive lies in."""
    if isinstance(archive, StoreUrl):
        scheme, _, rest = archive.url.partition("://")
        return StoreUrl(f"{scheme}://{posixpath.dirname(rest.partition('?')[0])}")
    return LocalPath(os.path.dirname(archive.path) or ".")


def beside(folder: HistoryPlace, name: str) -> HistoryPlace:
    """A file of a folder."""
    if isinstance(folder, StoreUrl):
        return StoreUrl(f"{folder.url.rstrip('/')}/{name}")
    return LocalPath(os.path.join(folder.path, name))


@dataclass(slots=True)
class ParentSearch:
    """Looks for parents, beside their children first and then in other places.

    Fixed: ``others``. Changing: where children lay, and what the places were found to hold, each looked through once.
    """

    others: Sequence[HistoryPlace] = ()
    _besides: list[HistoryPlace] = field(default_factory=list)
    _problems: list[ArchiveError] = field(default_factory=list)
    _identities: dict[HistoryPlace, list[tuple[HistoryPlace, ArchiveIdentity]]] = field(default_factory=dict)

    def find(self, child: ArchiveIdentity, lies_at: HistoryPlace | None) -> HistoryPlace:
        """Where the parent of a delta lies (ArchiveError: nowhere, with all that is known of it).

        ``lies_at``: the delta itself, None where it comes through a pipe.
        """
        reference = child.parent
        assert reference is not None
        for folder in () if lies_at is None else reversed(_folders_of(lies_at)):
            if folder not in self._besides:
                self._besides.insert(0, folder)
        folders = [*self._besides, *self.others]
        namesakes: list[HistoryPlace] = []
        for folder in folders:
            if child.likely_parent is not None:
                likely = beside(folder, child.likely_parent)
                if _answers(_identity(likely, self._problems), reference):
                    return likely
        for folder in folders:
            for place, identity in self._look_through(folder):
                if identity.answers(reference):
                    return place
                if identity.uuid == reference.uuid:
                    namesakes.append(place)
        raise _missing(child, namesakes, self._problems)

    def _look_through(self, folder: HistoryPlace) -> Sequence[tuple[HistoryPlace, ArchiveIdentity]]:
        if folder not in self._identities:
            found = ((place, _identity(place)) for place in self._places_in(folder))
            self._identities[folder] = [(place, identity) for place, identity in found if identity is not None]
        return self._identities[folder]

    def _places_in(self, folder: HistoryPlace) -> Sequence[HistoryPlace]:
        """What may be archives in a folder, which may be an archive itself; one that cannot be listed is told of."""
        if _is_no_folder(folder):
            return [folder]
        try:
            return [one.place for one in sorted(archives_in(folder), key=_newest_first)]
        except ArchiveError as error:
            self._problems.append(error)
            return []


def _folders_of(archive: HistoryPlace) -> Sequence[HistoryPlace]:
    """Where an archive lies: of a link the folder that it is in, and the one that the file is in."""
    folders = [folder_of(archive)]
    if isinstance(archive, LocalPath) and os.path.islink(archive.path):
        folders.append(folder_of(LocalPath(os.path.realpath(archive.path))))
    return folders


def _is_no_folder(folder: HistoryPlace) -> bool:
    return isinstance(folder, LocalPath) and not os.path.isdir(folder.path)


def _newest_first(listed: Listed) -> float:
    return -(listed.modified or 0.0)


def _identity(place: HistoryPlace, problems: list[ArchiveError] | None = None) -> ArchiveIdentity | None:
    """Who an archive is; None where there is none, or it cannot be read: why not goes to ``problems``, of a file."""
    if isinstance(place, LocalPath) and not os.path.isfile(place.path):
        return None
    try:
        return read_identity(place)
    except ArchiveError as error:
        if problems is not None and isinstance(place, LocalPath):
            problems.append(error)
        return None


def _answers(identity: ArchiveIdentity | None, reference: Reference) -> bool:
    return identity is not None and identity.answers(reference)


def _missing(
    child: ArchiveIdentity, namesakes: Sequence[HistoryPlace], problems: Sequence[ArchiveError]
) -> ArchiveError:
    needs = f"{child.name} holds only what changed since its parent"
    why = "".join(f"; {problem}" for problem in dict.fromkeys(map(str, problems)))
    if namesakes:
        other = f"{namesakes[0]} has that uuid, but is not the file that it was made from"
        sentence = f"{needs}, {parent_told(child)}; {other}{why}"
    else:
        sentence = f"{needs}, which was not found: {parent_told(child)}{why}"
    # It may be one of those that could not be opened.
    kind = NoKeyError if any(isinstance(problem, NoKeyError) for problem in problems) else ArchiveError
    return kind(sentence, advice=Advice.NAME_PARENTS)


def parent_told(child: ArchiveIdentity) -> str:
    """What a delta tells of its parent: uuid, time and likely name, as far as it does."""
    reference = child.parent
    assert reference is not None
    told = child.about.get("parent")
    created = told.get("created") if isinstance(told, dict) else None
    parts = [f"uuid {UUID(bytes=reference.uuid)}"]
    if isinstance(created, int) and 0 <= created < 1 << 33:
        parts.append(f"made {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(created))}")
    if child.likely_parent is not None:
        parts.append(f"then called {child.likely_parent}")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Link:
    """An archive of a chain: where it lies, and who it is."""

    place: HistoryPlace
    identity: ArchiveIdentity


@dataclass(frozen=True, slots=True)
class Chain:
    """An archive and its ancestors, open. Fixed: all. ``links`` and the view's archives have one order, newest first.

    stop() ends reads that wait. ``encrypted``: those of them that are.
    """

    view: ArchiveView
    links: Sequence[Link]
    stop: Callable[[], None]
    encrypted: Sequence[HistoryPlace] = ()


def _scanned(reader: RangeReader, place: HistoryPlace, kept: Kept) -> ArchiveIndex:
    """A plain archive, by a scan (ArchiveError that says what can be done, where it is compressed without an index)."""
    try:
        return ScannedIndex(reader.pread, reader.size, str(place), kept=kept, whole_extents=isinstance(place, StoreUrl))
    except NoIndexError:
        start = reader.pread(0, min(reader.size, HEADER_START.size))
    program = decompressor_of(start)
    if program is None:
        raise ArchiveError(f"{place}: {describe_foreign(start)}")
    reads = "merge ARCHIVE NEW" if program == "pybackup" else "merge - NEW"
    pipe = "" if program == "pybackup" else f"{program} -dc ARCHIVE | "
    raise ArchiveError(
        f"{place} is compressed and has no index (another program made it, or it was cut off), so its drives cannot be"
        f" read at random; `{pipe}pybackup {reads}` makes an archive of it that has one"
    )


@contextmanager
def open_chain(archive: HistoryPlace, search: ParentSearch | None = None, *, scan: bool = False) -> Iterator[Chain]:
    """An archive with all that it needs (ArchiveError; NoIndexError where it has no index).

    ``scan``: a plain archive is looked through, where its clusters lie; of another without an index it is told how to
    get one, by an ArchiveError.
    """
    search = search or ParentSearch()
    kept = Kept(KEPT_SEGMENTS, KEPT_FRAMES)
    with ExitStack() as stack:
        stack.enter_context(connections_kept(archive))
        readers: list[RangeReader] = []
        indexes: list[ArchiveIndex] = []
        links: list[Link] = []
        place: HistoryPlace | None = archive
        while place is not None:
            _check_room(links)
            reader = stack.enter_context(range_reader(place))
            try:
                index = ArchiveIndex(reader.pread, reader.size, str(place), allow_delta=True, kept=kept)
            except NoIndexError:
                if not scan:
                    raise
                index = _scanned(reader, place, kept)
            readers.append(reader)
            indexes.append(index)
            links.append(Link(place, identity_of_index(index)))
            _check_link(links)
            place = search.find(links[-1].identity, place) if index.header.is_delta else None

        def stop() -> None:
            for one in readers:
                one.stop()

        encrypted = [link.place for link, one in zip(links, readers, strict=True) if one.encryption is not None]
        yield Chain(ArchiveView(indexes), links, stop, encrypted)


def _check_room(links: Sequence[Link]) -> None:
    if len(links) == MOST_ARCHIVES:
        raise ArchiveError(f"{links[0].identity.name} needs more than {MOST_ARCHIVES} other archives, a chain of them")


def _check_link(links: Sequence[Link]) -> None:
    """The parent may have been replaced since it was found; and a chain must not come back to itself."""
    *_, child, parent = (None, *links)
    if child is not None and parent is not None:
        reference = child.identity.parent
        if reference is None or not parent.identity.answers(reference):
            raise ArchiveError(f"{parent.place} was replaced just now")
    digests = [link.identity.digest for link in links]
    if len(set(digests)) < len(digests):
        raise ArchiveError(f"{links[0].identity.name} is damaged: it is its own ancestor")
