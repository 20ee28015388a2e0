"""What guests have changed of one drive since each of some instants.

A span of time begins at each instant, and only the newest is written to: what has changed since an instant is the union
of its span and those behind it. So a write costs the same however many instants are remembered.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pybackup.core.device import CLUSTER_SIZE

from .changed_clusters import ChangedClusters, PieceRoom, Union


@dataclass(slots=True)
class _Span:
    """From an instant to the next one. ``instant`` is None as long as nobody knows whether it will be remembered."""

    instant: Hashable | None
    changed: ChangedClusters


class DriveRecord:
    """The record of one drive. Fixed: its clusters, the room. Changing, in the event loop only: the spans."""

    def __init__(self, size: int, room: PieceRoom) -> None:
        """``size`` in bytes."""
        self._clusters = -(-size // CLUSTER_SIZE)
        self._room = room
        self._spans: list[_Span] = []
        self._now: ChangedClusters | None = None

    def mark(self, offset: int, length: int) -> None:
        """These bytes are about to change. Before the change begins: it may fail, and have changed something."""
        if self._now is not None:
            self._now.mark(offset // CLUSTER_SIZE, -(-(offset + length) // CLUSTER_SIZE))

    def begin(self) -> None:
        """This is an instant; settle() says later whether it is remembered. No change is in flight."""
        self._now = ChangedClusters(self._clusters, self._room)
        self._spans.append(_Span(None, self._now))

    def settle(self, instant: Hashable | None) -> None:
        """Remember the last instant by this name, or forget it (None), if there is one to be settled."""
        if not self._spans or self._spans[-1].instant is not None:
            return
        if instant is None:
            self._remove(len(self._spans) - 1)
        else:
            self._spans[-1].instant = instant

    def forget(self, instant: Hashable) -> None:
        """Remember this instant no more."""
        for number, span in enumerate(self._spans):
            if span.instant == instant:
                self._remove(number)
                return

    def _remove(self, number: int) -> None:
        """What has changed since an instant has changed since the one before it too, and since no other."""
        span = self._spans.pop(number)
        if number:
            self._spans[number - 1].changed.take_in(span.changed)
        else:
            span.changed.drop()
        self._now = self._spans[-1].changed if self._spans else None

    def since(self, instant: Hashable) -> Union | None:
        """What has changed from this instant on, to the one that is to be settled, if there is such a one."""
        spans = [span for span in self._spans if span.instant is not None]
        for number, span in enumerate(spans):
            if span.instant == instant:
                return Union([one.changed for one in spans[number:]])
        return None

    def all_since(self, instant: Hashable) -> Union | None:
        """What has changed from this instant on until now."""
        for number, span in enumerate(self._spans):
            if span.instant == instant:
                return Union([one.changed for one in self._spans[number:]])
        return None

    def coarsen(self, age: int) -> bool:
        """Give back the memory of the span of this number, the oldest is 0; whether it had any."""
        return age < len(self._spans) and self._spans[age].changed.coarsen()

    @property
    def spans(self) -> Sequence[Hashable | None]:
        """The instants, oldest first."""
        return [span.instant for span in self._spans]
