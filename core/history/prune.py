"""Removes the archives of a place that no rule keeps, and merges chains first where that was asked for.

In this order, so that a kill at any moment leaves no kept archive that cannot be restored, and no delta without its
parent: deltas before their parents; a merged archive is written, read and found sound before what it replaces goes.
Just before archives are removed the place is looked at again, while none of them can become a parent.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from pybackup.core.archive.listing import Listed, archives_in
from pybackup.core.errors import Advice, ArchiveError, NoKeyError, PybackupError, RequestError
from pybackup.core.places.kinds import HistoryPlace, LocalPath, StoreUrl
from pybackup.core.secrets.keys import given

from .catalog import Catalog, Entry, connected, read_entries
from .plan import NEEDED_BY, Decision, Fate, Wishes, in_order, kept_instead, make_plan, needed
from .series import MERGED
from .shelf import InUseError, Shelf, open_shelf
from .verified import VerifiedRecord, key_of, open_record

HELD_AT_ONCE = 32
"""Archives that are locked together: the place is looked at again for each so many."""
_SUFFIXES = re.compile(r"\.vma(\.[A-Za-z0-9]+)?$|$")


@dataclass(frozen=True, slots=True)
class MergeTools:
    """What makes one full archive of an archive's chain, and what reads all of an archive and says if it is sound.

    Both fail as pybackup does.
    """

    merge: Callable[[HistoryPlace, HistoryPlace], None]
    verify: Callable[[HistoryPlace], bool]


@dataclass(slots=True)
class Pruned:
    """What became of each archive.

    ``merged``: by name in which file it is now; ``written``: bytes of these. ``error``: what kept the rest from being
    done.
    """

    decisions: list[Decision]
    removed: list[Entry] = field(default_factory=list)
    merged: dict[str, str] = field(default_factory=dict)
    written: int = 0
    error: PybackupError | None = None

    @property
    def freed(self) -> int:
        """Bytes of what was removed, less those of what takes its place."""
        return sum(entry.listed.size for entry in self.removed) - self.written


class Prune:
    """Fixed: the place, the wishes, the tools.

    Changing: the catalog, what was listed, which merged archives are trusted, and what could not be removed, and why.
    """

    def __init__(self, place: HistoryPlace, wishes: Wishes, tools: MergeTools | None = None) -> None:
        """RequestError where no rule keeps anything, or merging was asked for without tools."""
        if wishes.rules.is_empty:
            raise RequestError("no rule says what to keep", advice=Advice.KEEP_SOMETHING)
        self._place, self._tools = place, tools
        self._wishes = replace(wishes, is_trusted=self._is_trusted, grace=isinstance(place, StoreUrl))
        self._listed: frozenset[Listed] = frozenset()
        self._catalog = Catalog(())
        self._record: VerifiedRecord = open_record(place)
        self._trusted: set[str] = set()
        self._stays: dict[str, str] = {}

    def look(self) -> Pruned:
        """What would be done (ArchiveError where an archive cannot be read); nothing is changed."""
        with connected(self._place):
            listed = archives_in(self._place)
            self._listed = frozenset(listed)
            self._catalog = Catalog(self._read(listed))
            self._refuse_unreadable(self._catalog.entries)
            self._record.load()
        return Pruned(make_plan(self._catalog, self._wishes))

    def run(self, tell: Callable[[str], None] = lambda _: None) -> Pruned:
        """Do it (BusyError, TargetError, ArchiveError); what ends it halfway is in what it returns."""
        with open_shelf(self._place) as shelf:
            pruned = self.look()
            try:
                self._trust_merged(pruned, tell)
                at_once = [one for one in pruned.decisions if one.fate is Fate.REMOVE and one.into is None]
                self._remove_all(pruned, shelf, {one.entry.name: one.same_as for one in at_once})
                for decision in [one for one in pruned.decisions if one.fate is Fate.MERGE]:
                    self._merge(pruned, shelf, decision, tell)
            except PybackupError as error:
                pruned.error = error
        self._tell_what_stays(pruned)
        return pruned

    def _is_trusted(self, entry: Entry) -> bool:
        if entry.identity is None or entry.identity.digest is None:
            return False
        return key_of(entry) in self._trusted or self._record.is_sound(entry)

    def _read(self, listed: Sequence[Listed]) -> Sequence[Entry]:
        """What these are; where keys were given, an archive that none of them opens is not believed.

        Whoever can write to the place could make archives that tell everybody anything, and the true ones would go.
        """
        return [_sealed(one) if _is_unproved(one) else one for one in read_entries(self._place, listed)]

    def _refuse_unreadable(self, entries: Sequence[Entry]) -> None:
        """Nobody knows what an archive needs that cannot be read."""
        for entry in entries:
            if entry.identity is None and not entry.is_foreign and entry.name not in self._wishes.ignored:
                raise (NoKeyError if entry.is_sealed else ArchiveError)(
                    f"nothing is removed, for nobody knows what {entry.name} needs: {entry.problem}",
                    advice=Advice.IGNORE_ARCHIVE,
                    about=entry.name,
                )

    # -- removing --

    def _remove_all(self, pruned: Pruned, shelf: Shelf, names: Mapping[str, str | None]) -> None:
        """Remove what nobody needs of these; with each name, that of the archive that takes its place."""
        order = iter(in_order(self._catalog, names))
        while batch := list(islice(order, HELD_AT_ONCE)):
            before = len(pruned.removed)
            try:
                held = self._hold(shelf, batch)
                self._look_again()
                for entry in self._not_needed(held):
                    self._remove(pruned, shelf, entry, self._catalog.by_name.get(names[entry.name] or ""))
            finally:
                self._catalog = self._catalog.without(entry.name for entry in pruned.removed[before:])
                shelf.release()
                shelf.sync()

    def _hold(self, shelf: Shelf, batch: Sequence[Entry]) -> list[Entry]:
        held = []
        for entry in batch:
            try:
                shelf.hold(entry.listed)
                held.append(entry)
            except InUseError as error:
                self._stays[entry.name] = str(error)
        return held

    def _look_again(self) -> None:
        """What has appeared since: its needs count, too (ArchiveError where it cannot be read)."""
        listed = archives_in(self._place)
        new = [one for one in listed if one not in self._listed]
        gone = {one.name for one in self._listed} - {one.name for one in listed}
        self._listed = frozenset(listed)
        if gone:
            self._catalog = self._catalog.without(gone)
        if new:
            entries = self._read(new)
            self._refuse_unreadable(entries)
            self._catalog = self._catalog.with_also(entries)

    def _not_needed(self, held: Sequence[Entry]) -> list[Entry]:
        """Those of the held that nothing which stays needs, in the order in which they can go."""
        here = [entry for entry in held if self._catalog.by_name.get(entry.name) == entry]
        names = {entry.name for entry in here}
        stay = self._catalog.by_name.keys() - names
        for name, needed_by in needed(self._catalog, stay, self._is_trusted).items():
            if name in names:
                self._stays[name] = f"{NEEDED_BY}{needed_by}"
                names.discard(name)
        return [entry for entry in here if entry.name in names]

    def _remove(self, pruned: Pruned, shelf: Shelf, entry: Entry, by: Entry | None) -> None:
        has_name = shelf.remove(entry.listed, by.listed if by is not None else None)
        pruned.removed.append(entry)
        if by is not None:
            pruned.merged[entry.name] = entry.name if has_name else by.name
            pruned.written += by.listed.size

    def _tell_what_stays(self, pruned: Pruned) -> None:
        """What was to go and is still there is kept, for now."""
        done = {entry.name for entry in pruned.removed}
        pruned.decisions = [
            one if one.fate is Fate.KEEP or one.entry.name in done else kept_instead(one, self._why_it_stays(one))
            for one in pruned.decisions
        ]

    def _why_it_stays(self, decision: Decision) -> str:
        if decision.fate is Fate.MERGE:
            return f"{', '.join(decision.reasons)}; not merged"
        return self._stays.get(decision.entry.name, "not done")

    # -- merging --

    def _trust_merged(self, pruned: Pruned, tell: Callable[[str], None]) -> None:
        """Read merged archives that stand beside what they replace, for a merge was interrupted; then plan anew."""
        if not self._wishes.merge or self._tools is None:
            return
        doubtful = [entry for entry in self._catalog.entries if self._may_replace(entry)]
        for entry in doubtful:
            tell(f"reading {entry.name}, which may replace others")
            self._verify(entry)
        if doubtful:
            pruned.decisions = make_plan(self._catalog, self._wishes)

    def _may_replace(self, entry: Entry) -> bool:
        if entry.identity is None or entry.is_delta or not entry.identity.replaces or self._is_trusted(entry):
            return False
        return any(
            other is not entry
            and other.identity is not None
            and other.backup == entry.backup
            and other.identity.digest in entry.identity.replaces
            for other in self._catalog.entries
        )

    def _verify(self, entry: Entry) -> bool:
        assert self._tools is not None
        is_sound = self._tools.verify(entry.listed.place)
        self._record.note(entry, sound=is_sound, now=time.time())
        if is_sound and entry.identity is not None and entry.identity.digest is not None:
            self._trusted.add(key_of(entry))
        return is_sound

    def _merge(self, pruned: Pruned, shelf: Shelf, decision: Decision, tell: Callable[[str], None]) -> None:
        """Merge one chain, and remove what nobody needs any more."""
        entry = decision.entry
        if self._tools is None:
            raise RequestError("there is nothing to merge with")
        name = merged_name(entry.name)
        out = (
            LocalPath(f"{self._place.path}/{name}") if isinstance(self._place, LocalPath) else _below(self._place, name)
        )
        tell(f"merging the chain of {entry.name} into {name}")
        self._tools.merge(entry.listed.place, out)
        self._look_again()
        merged = self._catalog.by_name.get(name)
        if merged is None or not self._stands_for(merged, entry) or not self._verify(merged):
            raise ArchiveError(f"{out} is not what the chain of {entry.name} holds; nothing of the chain is removed")
        freed = {one.entry.name for one in pruned.decisions if one.into is not None} & self._catalog.by_name.keys()
        self._remove_all(pruned, shelf, {entry.name: name, **dict.fromkeys(freed)})

    @staticmethod
    def _stands_for(merged: Entry, entry: Entry) -> bool:
        if merged.identity is None or entry.identity is None or merged.is_delta:
            return False
        return merged.backup == entry.backup and entry.identity.digest in merged.identity.replaces


def _is_unproved(entry: Entry) -> bool:
    return bool(given()) and entry.identity is not None and entry.identity.is_public


def _sealed(entry: Entry) -> Entry:
    return Entry(entry.listed, None, f"no key that was given opens {entry.listed.place}", is_sealed=True)


def merged_name(name: str) -> str:
    """How the full archive is called into which the chain of an archive is merged."""
    at = _SUFFIXES.search(name)
    assert at is not None
    return name[: at.start()] + MERGED + name[at.start() :]


def _below(place: HistoryPlace, name: str) -> HistoryPlace:
    if isinstance(place, LocalPath):
        return LocalPath(os.path.join(place.path, name))
    return StoreUrl(f"{place.url.rstrip('/')}/{name}")
