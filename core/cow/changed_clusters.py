"""Which clusters of a drive guests have changed since an instant, within a bound of memory that all records share.

In pieces that exist only where something was changed; a piece that all was written of, or for which there is no room,
is one bit: "perhaps all of it". Too much may be called changed, too little never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bitarray import bitarray
from bitarray.util import zeros

from pybackup.core.device import CLUSTER_SIZE

PIECE_CLUSTERS = 1 << 15
"""Clusters in a piece: 2 GiB of the drive in 4 KiB."""
MOST_PIECES = 8 << 10
"""All records of a server together: 32 MiB, and 16 TiB of changes scattered as badly as can be."""
MOST_AT_ONCE = 1 << 10
"""Pieces that are looked at for one answer."""


class PieceRoom:
    """How many pieces more there may be. Changing: ``left``.

    ``make_room`` is called when there are none: it gives some back, if it can.
    """

    def __init__(self, pieces: int = MOST_PIECES, make_room: Callable[[], object] = lambda: None) -> None:
        self.left = pieces
        self._make_room = make_room

    def take(self) -> bool:
        """Take one; False if there is none left."""
        if not self.left:
            self._make_room()
        if not self.left:
            return False
        self.left -= 1
        return True


class ChangedClusters:
    """A set of clusters, empty at first. Fixed: their number, the room. Changing: what is in the set."""

    def __init__(self, clusters: int, room: PieceRoom) -> None:
        self.clusters = clusters
        self._room = room
        self._pieces: dict[int, bitarray] = {}
        self._whole = zeros(-(-clusters // PIECE_CLUSTERS))

    def mark(self, first: int, end: int) -> None:
        """Clusters [first, end) have changed, or are about to."""
        number, low = divmod(first, PIECE_CLUSTERS)
        # The short way of a guest's small write, which waits for this.
        if end - first == 1 and low < PIECE_CLUSTERS - 1 and (piece := self._pieces.get(number)) is not None:
            piece[low] = True
        else:
            self._mark(first, end)

    def _mark(self, first: int, end: int) -> None:
        while first < end:
            number, low = divmod(first, PIECE_CLUSTERS)
            high = min(PIECE_CLUSTERS, low + end - first)
            piece = self._pieces.get(number)
            if piece is not None:
                piece[low:high] = True
                if high == len(piece) and piece.all():
                    self._make_whole(number)
            elif not self._whole[number]:
                self._begin(number, low, high)
            first += high - low

    def _begin(self, number: int, low: int, high: int) -> None:
        size = min(PIECE_CLUSTERS, self.clusters - number * PIECE_CLUSTERS)
        if high - low == size or not self._room.take():
            self._whole[number] = True
            return
        piece = self._pieces[number] = zeros(size)
        piece[low:high] = True

    def _make_whole(self, number: int) -> None:
        del self._pieces[number]
        self._room.left += 1
        self._whole[number] = True

    def coarsen(self) -> bool:
        """Give all pieces back; whether there were any."""
        numbers = list(self._pieces)
        for number in numbers:
            self._make_whole(number)
        return bool(numbers)

    def drop(self) -> None:
        """Give all pieces back: the set is needed no more."""
        self._room.left += len(self._pieces)
        self._pieces = {}

    def take_in(self, other: ChangedClusters) -> None:
        """Make this the union of both, and drop the other."""
        self._whole |= other._whole
        for number in [number for number in self._pieces if self._whole[number]]:
            self._make_whole(number)
        for number, piece in other._pieces.items():
            if number in self._pieces:
                self._pieces[number] |= piece
                self._room.left += 1
            elif self._whole[number]:
                self._room.left += 1
            else:
                self._pieces[number] = piece
        other._pieces = {}

    def piece(self, number: int) -> bitarray | bool:
        """What is in the set of a piece: all, nothing, or as its bits say."""
        if self._whole[number]:
            return True
        return self._pieces.get(number, False)

    def begun(self) -> Sequence[int]:
        """The numbers of the pieces of which something is in the set."""
        return [*self._whole.search(bitarray("1")), *self._pieces]


class Union:
    """The union of some sets of one drive's clusters, looked at piece by piece.

    Fixed: the sets, at least one. Changing: the piece that was looked at last.
    """

    def __init__(self, sets: Sequence[ChangedClusters]) -> None:
        self._sets = sets
        self._clusters = sets[0].clusters
        self._last: tuple[int, bitarray | bool] = (-1, False)

    def run_at(self, cluster: int) -> tuple[int, bool]:
        """(end, in the set): clusters [cluster, end) are alike; the run may go on behind it."""
        number, low = divmod(cluster, PIECE_CLUSTERS)
        piece = self._piece(number)
        if isinstance(piece, bitarray):
            changed = bool(piece[low])
            end = piece.find(not changed, low)
            return number * PIECE_CLUSTERS + (len(piece) if end < 0 else end), changed
        for _ in range(MOST_AT_ONCE):
            number += 1
            if number * PIECE_CLUSTERS >= self._clusters or self._piece(number) is not piece:
                break
        return min(self._clusters, number * PIECE_CLUSTERS), piece

    def _piece(self, number: int) -> bitarray | bool:
        if self._last[0] != number:
            self._last = number, self._union(number)
        return self._last[1]

    def _union(self, number: int) -> bitarray | bool:
        found: bitarray | bool = False
        for one in self._sets:
            piece = one.piece(number)
            if piece is True:
                return True
            if isinstance(piece, bitarray):
                found = found | piece if isinstance(found, bitarray) else piece
        return found

    @property
    def size(self) -> int:
        """Bytes of the clusters in the union, the last cluster counted whole."""
        clusters = 0
        for number in {number for one in self._sets for number in one.begun()}:
            piece = self._union(number)
            whole = min(PIECE_CLUSTERS, self._clusters - number * PIECE_CLUSTERS)
            clusters += piece.count() if isinstance(piece, bitarray) else whole
        return clusters * CLUSTER_SIZE
