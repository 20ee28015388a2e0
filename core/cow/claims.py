"""The only copier: which clusters of a drive are still to be copied, and who is copying which.

Either way: to an archive before they change, or from an archive before they are used. QEMU's ``block/block-copy.c`` in
small. A set bit means *still to copy*. claim() and settle() are the only code that
touches the bitmap and the list of ranges in flight: claim clears the bits and registers the range, settle sets them
again where the copy failed and wakes whoever waits. Both run in the event loop without a pause, so no lock is needed.
"""

from __future__ import annotations

from bitarray import bitarray

from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.inflight import InflightRanges, Range

from .sparse_bits import SparseBits

PLAIN_MOST = 1 << 25
"""Clusters of which a plain bitmap is kept, the quickest: those of 2 TiB in 4 MiB."""


def _all_set(clusters: int) -> bitarray | SparseBits:
    if clusters > PLAIN_MOST:
        return SparseBits(clusters)
    bits = bitarray(clusters)
    bits.setall(True)
    return bits


class Claims:
    """The ledger of who copies which clusters of a drive: each is claimed once, by a job or for a guest.

    Fixed: ``size`` in bytes, ``clusters``. Changing, by claim() and settle() alone: the bitmap, what is in flight.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.clusters = -(-size // CLUSTER_SIZE)
        self._dirty = _all_set(self.clusters)
        self._inflight = InflightRanges()

    # -- the bitmap and the list --

    def claim(self, first: int, end: int, most: int | None = None) -> Range | None:
        """Take the first run of dirty clusters within [first, end) to copy it, at most ``most`` of them.

        None if all of it is clean.
        """
        start = self._dirty.find(True, first, end)
        if start < 0:
            return None
        if most is not None:
            end = min(end, start + most)
        clean = self._dirty.find(False, start, end)
        claimed = self._inflight.begin(start, end if clean < 0 else clean)
        self._dirty[claimed.start : claimed.end] = False
        return claimed

    def settle(self, claimed: Range, *, copied: bool) -> None:
        """End a claim. What was not copied is dirty again."""
        if not copied:
            self._dirty[claimed.start : claimed.end] = True
        self._inflight.finish(claimed)

    def abandon(self, claimed: Range) -> None:
        """End a claim that was left unsettled, if it was: a task that is cancelled before it starts runs no finally."""
        if claimed in self._inflight:
            self.settle(claimed, copied=False)

    def set_clean(self, first: int, end: int) -> None:
        """Clusters that need not be copied, known before anything has begun."""
        self._dirty[first:end] = False

    # -- questions --

    def left(self) -> bitarray | SparseBits:
        """A copy of the bitmap in which what is in flight is still to be copied, too."""
        left = self._dirty.copy()
        for one in self._inflight:
            left[one.start : one.end] = True
        return left

    def run_at(self, first: int, end: int) -> tuple[int, bool]:
        """(end of the clusters alike from ``first`` on, whether they are settled): neither dirty nor in flight."""
        if self._dirty.find(True, first, first + 1) >= 0:
            clean = self._dirty.find(False, first, end)
            return (end if clean < 0 else clean), False
        held = [one for one in self._inflight if one.overlaps(first, end)]
        if around := next((one for one in held if one.overlaps(first, first + 1)), None):
            return min(end, around.end), False
        dirty = self._dirty.find(True, first, end)
        return min([end if dirty < 0 else dirty, *(one.start for one in held)]), True

    def is_dirty(self, first: int, end: int) -> bool:
        """Whether any cluster in [first, end) is still to be copied by somebody."""
        return self._dirty.find(True, first, end) >= 0

    def next_dirty(self, first: int) -> int | None:
        """The first cluster from ``first`` on that is still to be claimed."""
        found = self._dirty.find(True, first)
        return found if found >= 0 else None

    def is_untouchable(self, first: int, end: int) -> bool:
        """Whether a change to clusters [first, end) must wait: some are dirty, or in flight."""
        return self._dirty.find(True, first, end) >= 0 or self._inflight.first_overlap(first, end) is not None

    def is_in_flight(self, first: int, end: int) -> bool:
        """Whether somebody is copying any cluster in [first, end) just now."""
        return self._inflight.first_overlap(first, end) is not None

    @property
    def is_finished(self) -> bool:
        """No dirty bit and nothing in flight, seen in one step."""
        return not self._inflight and not self._dirty.any()

    @property
    def dirty_bytes(self) -> int:
        """Bytes that are still to be claimed (the last cluster counted whole)."""
        return self._dirty.count() * CLUSTER_SIZE

    # -- waiting --

    async def wait_until_free(self, first: int, end: int) -> None:
        """Return at a moment when no copy of a cluster in [first, end) is under way."""
        await self._inflight.wait_until_free(first, end)

    async def wait_until_settled(self) -> None:
        """Return at a moment when no copy is under way."""
        await self._inflight.wait_until_empty()
