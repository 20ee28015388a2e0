"""A set of a drive's clusters, for ticking off what an archive holds.

A drive of 256 TiB takes half a gigabyte as a plain bitmap, and a few bytes of header can claim 254 of them. So the
bitmap comes in pieces: a piece of which nothing was seen does not exist, one that is complete is a mere mark.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitarray import bitarray

PIECE = 1 << 15
"""Clusters in a piece: 2 GiB of the drive in 4 KiB."""
_NOTHING = bitarray()


class SeenClusters:
    """Fixed: the number of clusters. Changing: the pieces; None stands for a complete one."""

    def __init__(self, clusters: int) -> None:
        self._clusters = clusters
        self._pieces: dict[int, bitarray | None] = {}

    def already(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """(first, number) of each run among these clusters in a row that was ticked off; neighbours may touch."""
        end = first + count
        for number in range(first // PIECE, -(-end // PIECE)):
            base = number * PIECE
            for start, behind in self._runs_of(number, max(0, first - base), min(PIECE, end - base)):
                yield start, behind - start

    def add(self, first: int, count: int) -> bool:
        """Tick off clusters in a row; False if any of them was ticked off before."""
        new = True
        end = first + count
        while first < end:
            number, low = divmod(first, PIECE)
            high = min(PIECE, low + end - first)
            new &= self._add(number, low, high)
            first += high - low
        return new

    def _add(self, number: int, low: int, high: int) -> bool:
        size = self._size(number)
        piece = self._pieces.setdefault(number, _NOTHING)
        if piece is None:
            return False
        if piece is _NOTHING:
            piece = self._pieces[number] = bitarray(size)
            piece.setall(False)
        new = piece.find(True, low, high) < 0
        piece[low:high] = True
        if high == size and piece.all():
            self._pieces[number] = None
        return new

    def remove(self, cluster: int) -> None:
        """Take one cluster out again."""
        number, low = divmod(cluster, PIECE)
        piece = self._pieces.get(number, _NOTHING)
        if piece is None:
            piece = self._pieces[number] = bitarray(self._size(number))
            piece.setall(True)
        if piece is not _NOTHING:
            piece[low] = False

    def _size(self, number: int) -> int:
        return min(PIECE, self._clusters - number * PIECE)

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
        for number in sorted(self._pieces):
            yield from self._runs_of(number, 0, self._size(number))

    def _runs_of(self, number: int, low: int, end: int) -> Iterator[tuple[int, int]]:
        """(first, end) of runs in the set that lie within [low, end) of a piece, in order."""
        piece, base = self._pieces.get(number, _NOTHING), number * PIECE
        if piece is None:
            yield base + low, base + end
            return
        low = piece.find(True, low, end)
        while low >= 0:
            high = piece.find(False, low, end)
            high = end if high < 0 else high
            yield base + low, base + high
            low = piece.find(True, high, end)
