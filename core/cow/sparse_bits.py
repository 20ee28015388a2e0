"""A bitmap of a very large disk: bits that all are set at first, in pieces that exist only where some are not.

A disk of 256 TiB, which any NBD server can claim to have, takes half a gigabyte as a plain bitmap. A piece of which no
bit was changed does not exist, one of which all are cleared is a bit of another bitmap. What is copied in order costs
one piece at a time; guests that write all over a disk while it is backed up cost up to 2 MiB a tebibyte.
"""

from __future__ import annotations

from bitarray import bitarray

PIECE_BITS = 1 << 15
"""Bits in a piece: of clusters, 2 GiB of a disk in 4 KiB."""


class SparseBits:
    """As much of bitarray as a bitmap of dirty clusters needs. Changing: the pieces that are neither full nor empty."""

    def __init__(self, size: int) -> None:
        """So many bits, all set."""
        self._size = size
        self._mixed: dict[int, bitarray] = {}
        self._cleared = bitarray(-(-size // PIECE_BITS))
        self._cleared.setall(False)

    def __setitem__(self, bits: slice, value: bool) -> None:
        first, end = bits.start, bits.stop
        while first < end:
            number, low = divmod(first, PIECE_BITS)
            high = min(PIECE_BITS, low + end - first)
            self._fill(number, low, high, value)
            first += high - low

    def _fill(self, number: int, low: int, high: int, value: bool) -> None:
        size = self._size_of(number)
        if high - low == size:
            self._mixed.pop(number, None)
            self._cleared[number] = not value
            return
        piece = self._mixed.get(number)
        if piece is None:
            if bool(self._cleared[number]) != value:
                return  # so it is already
            piece = self._mixed[number] = bitarray(size)
            piece.setall(not value)
            self._cleared[number] = False
        piece[low:high] = value
        if piece.all() if value else not piece.any():
            del self._mixed[number]
            self._cleared[number] = not value

    def __getitem__(self, bits: slice) -> bitarray:
        """The bits of a slice, as a bitmap of its own."""
        first, end = bits.start, min(bits.stop, self._size)
        found = bitarray()
        while first < end:
            number, low = divmod(first, PIECE_BITS)
            high = min(PIECE_BITS, low + end - first)
            piece = self._mixed.get(number)
            if piece is None:
                piece = bitarray(high)
                piece.setall(not self._cleared[number])
            found += piece[low:high]
            first += high - low
        return found

    def copy(self) -> SparseBits:
        """The same bits, which do not change with these."""
        other = SparseBits(self._size)
        other._mixed = {number: piece.copy() for number, piece in self._mixed.items()}
        other._cleared = self._cleared.copy()
        return other

    def __len__(self) -> int:
        return self._size

    def _size_of(self, number: int) -> int:
        return min(PIECE_BITS, self._size - number * PIECE_BITS)

    def find(self, value: bool, first: int = 0, end: int | None = None) -> int:
        """The first bit in [first, end) that has this value, or -1."""
        end = self._size if end is None else min(end, self._size)
        while first < end:
            number, low = divmod(first, PIECE_BITS)
            piece = self._mixed.get(number)
            if piece is not None:
                found = piece.find(value, low, min(PIECE_BITS, low + end - first))
                if found >= 0:
                    return number * PIECE_BITS + found
                number += 1
            elif bool(self._cleared[number]) != value:
                return first
            first = self._next(number, value) * PIECE_BITS if piece is None else number * PIECE_BITS
        return -1

    def _next(self, number: int, value: bool) -> int:
        """The next piece that may have such a bit: whole ones are passed over as bits of the other bitmap."""
        if value:
            following = self._cleared.find(False, number)
            return following if following >= 0 else len(self._cleared)
        return number + 1

    def any(self) -> bool:
        """Whether any bit is set."""
        return self.find(True) >= 0

    def count(self) -> int:
        """How many bits are set."""
        whole = (self._cleared.count(False) - len(self._mixed)) * PIECE_BITS
        last = len(self._cleared) - 1
        if last >= 0 and not self._cleared[last] and last not in self._mixed:
            whole -= PIECE_BITS - self._size_of(last)
        return whole + sum(piece.count() for piece in self._mixed.values())
