"""The archives of a mount that are open: those that somebody reads, and the last ones used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pybackup.core.archive.chain import Chain, ParentSearch, open_chain
from pybackup.core.places.kinds import HistoryPlace

MOST_IDLE = 4
"""Archives that stay open although nobody reads them: each may keep some tens of megabytes."""


@dataclass(slots=True)
class _Opened:
    chain: Chain
    stack: ExitStack
    users: int = 0


class OpenedArchives:
    """Opens archives when they are looked at, each once, from any thread.

    Fixed: where parents may lie. Changing, under locks: what is open, and by how many it is used.
    """

    def __init__(self, parents: Sequence[HistoryPlace]) -> None:
        self._parents = parents
        self._lock = threading.Lock()
        self._opening: dict[HistoryPlace, threading.Lock] = {}
        self._opened: OrderedDict[HistoryPlace, _Opened] = OrderedDict()
        self._closed = False

    @contextmanager
    def used(self, place: HistoryPlace) -> Iterator[Chain]:
        """An archive, open as long as the body runs (ArchiveError)."""
        chain = self.take(place)
        try:
            yield chain
        finally:
            self.give_back(place)

    def take(self, place: HistoryPlace) -> Chain:
        """An archive, which stays open until it is given back (ArchiveError)."""
        with self._lock:
            turn = self._opening.setdefault(place, threading.Lock())
        with turn:
            with self._lock:
                found = self._opened.get(place)
                if found is not None:
                    return self._use(place, found)
            with ExitStack() as stack:
                chain = stack.enter_context(open_chain(place, ParentSearch(self._parents), scan=True))
                opened = _Opened(chain, stack.pop_all())
            with self._lock:
                self._opened[place] = opened
                return self._use(place, opened)

    def _use(self, place: HistoryPlace, opened: _Opened) -> Chain:
        opened.users += 1
        self._opened.move_to_end(place)
        return opened.chain

    def give_back(self, place: HistoryPlace) -> None:
        """An archive that was taken is not used any more."""
        with self._lock:
            self._opened[place].users -= 1
            idle = [one for one, opened in self._opened.items() if not opened.users]
            leaving = [self._opened.pop(one) for one in idle[:-MOST_IDLE]]
        for one in leaving:
            one.stack.close()

    def forget(self, place: HistoryPlace) -> None:
        """Another archive lies there now: the old one is closed, unless somebody reads it still."""
        with self._lock:
            found = self._opened.get(place)
            if found is None or found.users:
                return
            del self._opened[place]
        found.stack.close()

    def close(self) -> None:
        """Close all; reads that wait fail."""
        with self._lock:
            leaving = list(self._opened.values())
            self._opened.clear()
        for one in leaving:
            one.chain.stop()
            one.stack.close()
