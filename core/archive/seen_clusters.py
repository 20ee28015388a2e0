"""A set of a drive's clusters, for ticking off what an archive holds.

A drive of 256 TiB takes half a gigabyte as a plain bitmap, and a few bytes of header can claim 254 of them. So the
bitmap comes in pieces: a piece of which nothing was seen does not exist, one that is complete is a bit of another
bitmap. A small archive can begin as many pieces as it likes; those that all its drives may have at a time are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge

from bitarray import bitarray

PIECE_CLUSTERS = 1 << 15
"""Clusters in a piece: 2 GiB of the drive in 4 KiB."""
MOST_PIECES = 24 << 10
"""That are neither empty nor complete: 96 MiB, and 48 TiB of drives in any order of their clusters."""
_NOTHING = bitarray()


class TooScatteredError(Exception):
    """An archive has its clusters in an order that takes more memory to check than there is for it."""

    def __init__(self) -> None:
        super().__init__(
            f"its clusters lie too scattered: more than {MOST_PIECES * PIECE_CLUSTERS >> 24} TiB of its drives are"
            " begun at once, which takes more memory to check than pybackup uses"
        )


class Budget:
    """How many pieces more all drives of an archive may begin. Changing: ``left``."""

    def __init__(self, pieces: int = MOST_PIECES) -> None:
        self.left = pieces


class SeenClusters:
    """Fixed: the number of clusters. Changing: the pieces that are begun, and a bit for each complete one."""

    def __init__(self, clusters: int, budget: Budget | None = None) -> None:
        self._clusters = clusters
        self._pieces: dict[int, bitarray] = {}
        self._complete = bitarray()
        self._budget = budget or Budget()

    def already(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """(first, number) of each run among these clusters in a row that was ticked off; neighbours may touch."""
        end = first + count
        for number in range(first // PIECE_CLUSTERS, -(-end // PIECE_CLUSTERS)):
            base = number * PIECE_CLUSTERS
            for start, behind in self._runs_of(number, max(0, first - base), min(PIECE_CLUSTERS, end - base)):
                yield start, behind - start

    def add(self, first: int, count: int) -> bool:
        """Tick off clusters in a row; False if any of them was ticked off before."""
        new = True
        end = first + count
        while first < end:
            number, low = divmod(first, PIECE_CLUSTERS)
            high = min(PIECE_CLUSTERS, low + end - first)
            new &= self._add(number, low, high)
            first += high - low
        return new

    def _add(self, number: int, low: int, high: int) -> bool:
        if self._is_complete(number):
            return False
        size = self._size(number)
        if high - low == size and number not in self._pieces:
            self._mark_complete(number)
            return True
        piece = self._pieces.get(number, _NOTHING)
        if piece is _NOTHING:
            piece = self._begin(number, False)
        new = piece.find(True, low, high) < 0
        piece[low:high] = True
        if piece.all():
            del self._pieces[number]
            self._budget.left += 1
            self._mark_complete(number)
        return new

    def _begin(self, number: int, value: bool) -> bitarray:
        if not self._budget.left:
            raise TooScatteredError
        self._budget.left -= 1
        piece = self._pieces[number] = bitarray(self._size(number))
        piece.setall(value)
        return piece

    def _is_complete(self, number: int) -> bool:
        return number < len(self._complete) and bool(self._complete[number])

    def _mark_complete(self, number: int) -> None:
        missing = number + 1 - len(self._complete)
        if missing > 0:
            self._complete.extend(bitarray(missing))
            self._complete[-missing:] = False
        self._complete[number] = True

    def remove(self, cluster: int) -> None:
        """Take one cluster out again."""
        number, low = divmod(cluster, PIECE_CLUSTERS)
        piece = self._pieces.get(number, _NOTHING)
        if self._is_complete(number):
            self._complete[number] = False
            piece = self._begin(number, True)
        if piece is not _NOTHING:
            piece[low] = False

    def _size(self, number: int) -> int:
        return min(PIECE_CLUSTERS, self._clusters - number * PIECE_CLUSTERS)

    def missing(self) -> Iterator[tuple[int, int]]:
        """(first, number) of each run of clusters that are not in the set."""
        first = 0
        for start, end in self._runs():
            if start > first:
                yield first, start - first
            first = end
        if first < self._clusters:
            yield first, self._clusters - first

    def _runs(self) -> Iterator[tuple[int, int]]:
        """(first, end) of runs in the set, in order; neighbours may touch."""
        complete = self._complete.search(bitarray("1"))
        for number in merge(complete, sorted(self._pieces)):
            yield from self._runs_of(number, 0, self._size(number))

    def _runs_of(self, number: int, low: int, end: int) -> Iterator[tuple[int, int]]:
        """(first, end) of runs in the set that lie within [low, end) of a piece, in order."""
        piece, base = self._pieces.get(number, _NOTHING), number * PIECE_CLUSTERS
        if self._is_complete(number):
            yield base + low, base + end
            return
        low = piece.find(True, low, end)
        while low >= 0:
            high = piece.find(False, low, end)
            high = end if high < 0 else high
            yield base + low, base + high
            low = piece.find(True, high, end)
