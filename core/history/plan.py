"""What is to become of each archive of a place: kept, and why; removed; or merged first. Nothing is touched here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from enum import StrEnum

from .catalog import Catalog, Entry
from .retention import Rules, reasons_to_keep
from .series import series_of

NEEDED_BY = "needed by "
"""Begins the reason of what is kept for another archive; its name follows."""

GRACE = 86400.0
"""Seconds for which what was the newest of a series in a store stays: a run somewhere may be building on it."""


class Fate(StrEnum):
    """What is done with an archive."""

    KEEP = "keep"
    REMOVE = "remove"
    MERGE = "merge"
    """It is kept as a full archive, and what it needs is removed."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with one archive, and why.

    ``series``: None where it cannot be read. ``into``: the archive into which the chain is merged that it belongs to.
    ``same_as``: the archive that is the same backup, and takes its place.
    """

    entry: Entry
    series: str | None
    fate: Fate
    reasons: tuple[str, ...]
    into: str | None = None
    same_as: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was asked for.

    ``now``: seconds since 1970. ``merge``: whether chains may be merged. ``grace``: whether nobody can say what others
    are using, as in stores. ``ignored``: names of archives that may be unreadable. ``series``: the only one of which
    anything is removed; None for all. ``is_trusted``: whether all of a merged archive was read, and was sound.
    """

    rules: Rules
    now: float
    merge: bool = False
    grace: bool = False
    ignored: Collection[str] = ()
    series_of: str | None = None
    zone: tzinfo | None = None
    is_trusted: Callable[[Entry], bool] = field(default=lambda _: False)


def make_plan(catalog: Catalog, wishes: Wishes) -> list[Decision]:
    """The fate of every archive, in the order of the catalog."""
    return _Plan(catalog, wishes).decisions()


def needed(catalog: Catalog, kept: Iterable[str], is_trusted: Callable[[Entry], bool]) -> dict[str, str]:
    """By name each archive that kept ones need, themselves left out, and which of them needs it.

    Where a parent is there more than once, all of them are needed unless a full one is trusted.
    """
    found: dict[str, str] = {}
    ready = [catalog.by_name[name] for name in sorted(kept)]
    seen = {entry.name for entry in ready}
    while ready:
        entry = ready.pop()
        for parent in _needs(catalog, entry, is_trusted):
            if parent.name not in seen:
                seen.add(parent.name)
                found[parent.name] = entry.name
                ready.append(parent)
    return found


def _needs(catalog: Catalog, entry: Entry, is_trusted: Callable[[Entry], bool]) -> Sequence[Entry]:
    found = catalog.candidates(entry)
    trusted = [one for one in found if not one.is_delta and catalog.broken(one) is None and is_trusted(one)]
    return trusted[:1] or found


def in_order(catalog: Catalog, names: Collection[str]) -> list[Entry]:
    """These archives, each after all of them that are made from it: who removes them so leaves no orphan."""
    entries = [entry for entry in catalog.entries if entry.name in names]
    parents = {entry.name: [one.name for one in catalog.candidates(entry)] for entry in entries}
    waiting = dict.fromkeys(names, 0)
    for of in parents.values():
        for name in of:
            if name in waiting:
                waiting[name] += 1
    order: list[Entry] = []
    ready = [entry for entry in reversed(entries) if not waiting[entry.name]]
    while ready:
        entry = ready.pop()
        order.append(entry)
        for name in parents[entry.name]:
            if name in waiting:
                waiting[name] -= 1
                if not waiting[name]:
                    ready.append(catalog.by_name[name])
    return order


class _Plan:
    """Fixed: catalog and wishes. Changing, while it is made: ``_wanted``, by name why an archive itself is kept."""

    def __init__(self, catalog: Catalog, wishes: Wishes) -> None:
        self._catalog, self._wishes = catalog, wishes
        self._series = series_of(catalog)
        self._only = None if wishes.series_of is None else self._series.get(wishes.series_of)
        self._wanted: dict[str, list[str]] = {}
        self._superseded: dict[str, str] = {}
        self._merged: dict[str, list[str]] = {}

    def decisions(self) -> list[Decision]:
        self._want_what_is_not_ours_to_judge()
        by_series: dict[str, list[Entry]] = {}
        for entry in self._catalog.entries:
            if entry.identity is not None:
                by_series.setdefault(self._series[entry.name], []).append(entry)
        for series, entries in by_series.items():
            if self._is_asked_for(series):
                self._judge(entries)
            else:
                for entry in entries:
                    self._want(entry, "another series")
        if self._wishes.merge:
            self._choose_merges()
        stop = dict.fromkeys(self._merged)
        needed_for = needed(self._cut(stop), self._wanted, self._wishes.is_trusted)
        return [self._decision(entry, needed_for) for entry in self._catalog.entries]

    def _is_asked_for(self, series: str) -> bool:
        return self._wishes.series_of is None or series == self._only

    def _want(self, entry: Entry, reason: str) -> None:
        self._wanted.setdefault(entry.name, []).append(reason)

    def _want_what_is_not_ours_to_judge(self) -> None:
        for entry in self._catalog.entries:
            if entry.is_foreign:
                self._want(entry, "not understood")
            elif entry.identity is None:
                self._want(entry, "cannot be read")
            elif (why := self._catalog.broken(entry)) is not None:
                self._want(entry, f"broken: {why}")
            elif entry.listed.is_link:
                self._want(entry, "a link")

    def _judge(self, entries: Sequence[Entry]) -> None:
        """The rules, for the backups of one series; each backup is kept with all its files but superseded ones."""
        backups: dict[tuple[bytes, int], list[Entry]] = {}
        for entry in entries:
            if self._catalog.broken(entry) is None:
                backups.setdefault(entry.backup, []).append(entry)
        order = list(backups.values())
        found = reasons_to_keep(
            [files[0].created for files in order], self._wishes.rules, self._wishes.now, self._wishes.zone
        )
        for files, reason in zip(order, found, strict=True):
            if reason is not None:
                self._keep(files, reason)
        own = [[one for one in files if not one.listed.is_link] for files in order]
        self._keep_newest([files for files in own if files])
        if self._wishes.grace:
            self._keep_what_was_newest(entries)

    def _keep_newest(self, backups: Sequence[Sequence[Entry]]) -> None:
        """Whatever the rules say. Without an index nobody can tell that it is whole: one that has it is kept, too."""
        for files in backups[:1]:
            self._keep(files, "newest")
        for files in backups:
            if any(one.has_index for one in files):
                if files is not backups[0]:
                    self._keep(files, "newest with an index")
                return

    def _keep_what_was_newest(self, entries: Sequence[Entry]) -> None:
        """What a run that began within a day may have found as the newest: each with a younger one after it."""
        after = self._wishes.now
        for entry in sorted(entries, key=lambda one: -_written(one)):
            if after > self._wishes.now - GRACE:
                self._want(entry, "newest within a day")
            after = min(after, _written(entry))

    def _keep(self, files: Sequence[Entry], reason: str) -> None:
        for entry in files:
            by = next((one for one in files if self._supersedes(one, entry)), None)
            if by is None:
                self._want(entry, reason)
            else:
                self._superseded[entry.name] = by.name

    def _supersedes(self, one: Entry, other: Entry) -> bool:
        """Whether one is known to hold all that the other, a file of the same backup, can be needed for."""
        if one is other or one.is_delta or one.identity is None or other.identity is None or one.listed.is_link:
            return False
        return other.identity.digest in one.identity.replaces and self._wishes.is_trusted(one)

    # -- merging --

    def _choose_merges(self) -> None:
        """Each wanted delta that is the first wanted one of its chain is merged, where that frees anything."""
        first = {
            entry.name: list(self._catalog.chain_of(entry)[1:])
            for entry in self._catalog.entries
            if self._can_be_merged(entry)
        }
        others = needed(self._cut(first), self._wanted, self._wishes.is_trusted)
        for name, chain in first.items():
            freed = [one.name for one in chain if one.name not in others]
            if freed:
                self._merged[name] = freed

    def _can_be_merged(self, entry: Entry) -> bool:
        if entry.name not in self._wanted or not entry.is_delta or entry.listed.is_link:
            return False
        if self._catalog.broken(entry) is not None or not self._is_asked_for(self._series[entry.name]):
            return False
        return not any(one.name in self._wanted for one in self._catalog.chain_of(entry)[1:])

    def _cut(self, full: Collection[str]) -> Catalog:
        """The catalog as if these needed nothing."""
        return _CutCatalog(self._catalog, full) if full else self._catalog

    # -- what comes of it --

    def _decision(self, entry: Entry, needed_for: dict[str, str]) -> Decision:
        series = self._series.get(entry.name)
        if entry.name in self._merged:
            return Decision(entry, series, Fate.MERGE, tuple(self._wanted[entry.name]))
        reasons = list(self._wanted.get(entry.name, ()))
        if entry.name in needed_for:
            reasons.append(f"{NEEDED_BY}{needed_for[entry.name]}")
        if reasons:
            return Decision(entry, series, Fate.KEEP, tuple(reasons))
        if (same := self._superseded.get(entry.name)) is not None:
            return Decision(entry, series, Fate.REMOVE, (f"{same} is the same backup",), same_as=same)
        into = next((name for name, freed in self._merged.items() if entry.name in freed), None)
        why = f"merged into {into}" if into else "no rule keeps it"
        return Decision(entry, series, Fate.REMOVE, (why,), into=into)


class _CutCatalog(Catalog):
    """A catalog in which some archives need nothing, as after they will have been merged."""

    def __init__(self, catalog: Catalog, full: Collection[str]) -> None:
        super().__init__(catalog.entries)
        self._full = full

    def candidates(self, entry: Entry) -> Sequence[Entry]:
        """None for those."""
        return () if entry.name in self._full else super().candidates(entry)


def _written(entry: Entry) -> float:
    """When an archive appeared, as far as anybody says: not before it was begun."""
    return max(float(entry.created), entry.listed.modified or 0.0)


def kept_instead(decision: Decision, reason: str) -> Decision:
    """The decision to keep after all."""
    return replace(decision, fate=Fate.KEEP, reasons=(reason,), into=None, same_as=None)
