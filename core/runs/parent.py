"""The parent of an incremental backup: chosen, opened, and held until the new archive is durable.

That an incremental backup is not possible never makes a backup fail: it becomes a full one, and says why.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from pybackup.core.archive.chain import Chain, Link, ParentSearch, folder_of, open_chain
from pybackup.core.archive.held import check_still_there, hold
from pybackup.core.archive.identity import ArchiveIdentity, read_identity
from pybackup.core.archive.index_memory import forget_all_but, going_by_memory
from pybackup.core.archive.listing import Listed, archives_in
from pybackup.core.archive.open import connections_kept
from pybackup.core.errors import ArchiveError, NoKeyError, PybackupError, RequestError
from pybackup.core.history.series import pattern_of
from pybackup.core.jobs.changes import BY_DIGEST, DriveWay
from pybackup.core.places.kinds import HistoryPlace, LocalPath, NewArchivePlace, StoreUrl
from pybackup.core.places.same_file import is_same_file
from pybackup.formats.vma import DriveInfo

from .listener import Listener

MAX_CHAIN = 30
"""Deltas in a row, after which the next archive is a full one."""
MOST_TRIED = 5
"""Archives that are opened to be a parent: where so many cannot be, something else is wrong."""
ASKED_AT_ONCE = 8
"""Archives of a chain in a store that are looked at at a time."""


@dataclass(frozen=True, slots=True)
class ParentWish:
    """What an archive shall be a delta of: ``base``, or the newest that fits beside it, where that is None.

    ``others``: where ancestors may lie too. ``max_chain``: deltas in a row.
    """

    base: HistoryPlace | None = None
    others: Sequence[HistoryPlace] = ()
    max_chain: int = MAX_CHAIN


class Made(NamedTuple):
    """What a new archive will be: when it was made, in seconds since 1970, and its uuid."""

    created: int
    uuid: bytes


@dataclass(frozen=True, slots=True)
class Parent:
    """A parent that is open, with all its ancestors, and is not pruned meanwhile.

    ``held``: a descriptor of the file of each archive of the chain, None for those in stores, which nobody can hold.
    """

    chain: Chain
    held: Sequence[int | None]

    @property
    def identity(self) -> ArchiveIdentity:
        """Who it is."""
        return self.chain.links[0].identity

    @property
    def place(self) -> HistoryPlace:
        """Where it lies."""
        return self.chain.links[0].place

    @property
    def deltas(self) -> int:
        """Deltas from it down to the full archive."""
        return len(self.chain.links) - 1

    def drive(self, name: str) -> DriveInfo | None:
        """Its drive of that name."""
        return self.identity.header.by_name.get(name)

    def check_still_there(self) -> None:
        """That all of the chain is there still: without it the new archive is nothing (ArchiveError)."""
        with going_by_memory(), ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="pybackup-parents") as pool:
            for _ in pool.map(_check_link, self.chain.links, self.held):
                """Each fails by itself."""

    def about(self) -> dict[str, Any]:
        """What a delta tells of it."""
        digest = self.identity.digest
        assert digest is not None
        return {
            "parent": {
                "uuid": self.identity.uuid.hex(),
                "index": digest.hex(),
                "name": os.path.basename(self.place.text),
                "created": self.identity.created,
            },
            "chain": self.deltas + 1,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """The parent, or why there is none; for a backup that shall not have one neither.

    ``superseded``: the uuids of archives that would be its ancestors, were it not the beginning of a new chain.
    """

    parent: Parent | None = None
    why_full: str | None = None
    is_planned: bool = False
    superseded: frozenset[bytes] = frozenset()

    def way_of(self, name: str) -> DriveWay:
        """How a drive comes into the archive, unless somebody knows what has changed of it."""
        if self.parent is None:
            return DriveWay(why=self.why_full, is_planned=self.is_planned)
        if self.parent.drive(name) is None:
            return DriveWay(why="the parent has no drive of this name")
        return DriveWay(BY_DIGEST)


@contextmanager
def chosen_parent(
    wish: ParentWish | None, archive: NewArchivePlace, origins: Mapping[str, str], made: Made, listener: Listener
) -> Iterator[Choice]:
    """The parent of a new archive, which will be ``made``; ``origins``: of its drives, by their names.

    RequestError where nobody can look for one.
    """
    with ExitStack() as stack:
        if wish is None:
            yield Choice()
            return
        stack.enter_context(connections_kept(archive if wish.base is None else wish.base))
        with going_by_memory():
            choice = _choose(wish, archive, origins, made, stack)
        if choice.parent is None:
            listener.note(f"this will be a full archive: {choice.why_full}")
        yield choice


def _choose(
    wish: ParentWish,
    archive: NewArchivePlace,
    origins: Mapping[str, str],
    made: Made,
    stack: ExitStack,
) -> Choice:
    why = ""
    sealed: list[HistoryPlace] = []
    for place in _candidates(wish, archive, origins, made, sealed):
        with ExitStack() as opened:
            try:
                parent = opened.enter_context(_opened(place, wish))
            except PybackupError as error:
                why = why or f"{place} cannot be its parent: {error}"
                continue
            choice = _choice_of(parent, wish, archive, origins)
            if choice.parent is not None:
                # Nothing else is held: what is not needed may be replaced, by this very run too.
                stack.push(opened.pop_all())
            return choice
    if sealed and not why:
        return Choice(why_full="what lies beside it is encrypted, and this machine has neither a key nor remembers it")
    return Choice(why_full=why or "no archive that fits lies beside it")


def _choice_of(parent: Parent, wish: ParentWish, archive: NewArchivePlace, names: Iterable[str]) -> Choice:
    """The archive as a parent, or why it shall not be one (RequestError where it was asked for and cannot be)."""
    if not any(parent.drive(name) for name in names):
        return Choice(why_full=f"{parent.place} has none of these drives")
    before = frozenset(link.identity.uuid for link in parent.chain.links)
    if replaced := _replaced(parent, archive):
        if wish.base is not None:
            raise RequestError(f"{replaced} would be replaced by an archive that cannot be read without it")
        return Choice(why_full=f"it replaces {replaced}, of which it would be a delta", superseded=before)
    if parent.deltas >= wish.max_chain:
        why = f"{parent.place} is the last of {parent.deltas} deltas in a row"
        return Choice(why_full=why, is_planned=True, superseded=before)
    return Choice(parent)


def _replaced(parent: Parent, archive: NewArchivePlace) -> HistoryPlace | None:
    """The archive of the chain, if there is one, whose file the new archive would take the place of."""
    places = (link.place for link in parent.chain.links)
    return next((place for place in places if place == archive or is_same_file(place, archive)), None)


def _candidates(
    wish: ParentWish,
    archive: NewArchivePlace,
    origins: Mapping[str, str],
    made: Made,
    sealed: list[HistoryPlace],
) -> Sequence[HistoryPlace]:
    """What may be the parent, the likeliest first; what nobody here can read is added to ``sealed``."""
    if wish.base is not None:
        return [wish.base]
    if not isinstance(archive, LocalPath | StoreUrl):
        raise RequestError(f"{archive} has no folder in which a parent could be looked for; name one")
    folder = folder_of(archive)
    if isinstance(folder, LocalPath) and not os.path.isdir(folder.path):
        return []
    pattern = pattern_of(os.path.basename(archive.text), *made)
    found: list[tuple[bool, bool, int, HistoryPlace]] = []
    for listed in _likeliest_first(_listed(folder), pattern):
        if isinstance(folder, StoreUrl) and sum(of_series for of_series, *_ in found) == MOST_TRIED:
            break  # each look costs some requests, and those that follow are older
        try:
            identity = _with_these_drives(listed.place, origins)
        except NoKeyError:
            sealed.append(listed.place)
            continue
        if identity is None:
            continue
        of_series = pattern_of(listed.name, identity.created, identity.uuid) == pattern
        if of_series or _are_the_same(identity, origins):
            found.append((of_series, identity.created <= made.created, identity.created, listed.place))
    found.sort(key=lambda one: one[:3], reverse=True)
    return [place for *_, place in found[:MOST_TRIED]]


def _listed(folder: HistoryPlace) -> Sequence[Listed]:
    """The archives of a folder; of those of a store that are there no more, what was remembered is forgotten."""
    before = time.time()
    listed = archives_in(folder)
    if isinstance(folder, StoreUrl):
        forget_all_but(str(folder), {str(one.place) for one in listed}, before)
    return listed


def _likeliest_first(listed: Sequence[Listed], pattern: str) -> Sequence[Listed]:
    """Those of the series, as far as a name and the time of a file tell, and then the others; the newest first."""

    def rank(one: Listed) -> tuple[bool, float]:
        modified = one.modified or 0.0
        return pattern_of(one.name, int(modified), None) == pattern, modified

    return sorted(listed, key=rank, reverse=True)


def _are_the_same(identity: ArchiveIdentity, origins: Mapping[str, str]) -> bool:
    """Whether a drive of an archive came from the disk that one of these is, as far as the archive tells.

    Of two machines whose archives lie in one folder, one shall not become a delta of the other.
    """
    told = identity.about.get("origins")
    return isinstance(told, dict) and any(told.get(name) == origin for name, origin in origins.items())


def _with_these_drives(place: HistoryPlace, names: Iterable[str]) -> ArchiveIdentity | None:
    """The archive, where it can be a parent, as far as its header tells (NoKeyError)."""
    try:
        identity = read_identity(place)
    except NoKeyError:
        raise
    except ArchiveError:
        return None
    if identity.digest is None or not any(name in identity.header.by_name for name in names):
        return None
    return identity


@contextmanager
def _opened(place: HistoryPlace, wish: ParentWish) -> Iterator[Parent]:
    """The archive and its ancestors, open and held."""
    with open_chain(place, ParentSearch(wish.others)) as chain, ExitStack() as stack:
        held: list[int | None] = []
        for link in chain.links:
            fd = None
            if isinstance(link.place, LocalPath):
                fd = hold(link.place.path, link.identity)
                stack.callback(os.close, fd)
            held.append(fd)
        yield Parent(chain, held)


def _check_link(link: Link, held: int | None) -> None:
    """That an archive is where it was, and the same (ArchiveError)."""
    try:
        if isinstance(link.place, LocalPath) and held is not None:
            check_still_there(link.place.path, held, link.identity)
        elif read_identity(link.place).digest != link.identity.digest:
            raise ArchiveError(f"{link.place} was replaced just now")
    except ArchiveError as error:
        raise ArchiveError(f"the new archive would need one that is not there any more: {error}") from error
