"""How much memory the requests and replies of all connections of a server may take together.

Every connection has a share of its own (OWN), with which any request gets on, for long ones go piece by piece. What it
holds beyond that comes out of one pool, which only makes things faster. So nobody ever has to wait for what another
client holds: one that takes no answers, or sends its data a byte a minute, keeps what it has, and the others go on.
"""

from __future__ import annotations

from pybackup.formats.nbd_transmission import LONG

OWN = LONG
"""Bytes that a connection may hold, whatever the others do; one piece more is let through."""
POOL = 48 << 20
"""Bytes of the pool: one client alone has up to half of it, enough for 16 requests of 1 MiB."""
BATCH = 1 << 20
"""Bytes that a connection which holds more than its own share may take at once."""


class MemoryPool:
    """The pool of one server. Changing, by its shares only: the bytes that nobody has."""

    def __init__(self, size: int = POOL) -> None:
        self.free = size


class MemoryShare:
    """What one connection may take. Fixed: the pool. Changing: the bytes it has of the pool."""

    def __init__(self, pool: MemoryPool) -> None:
        self._pool = pool
        self.borrowed = 0

    def room(self, held: int) -> int:
        """Bytes that may be taken by who holds ``held``; 0 for none, never 0 for who holds less than OWN."""
        if held < OWN:
            if self.borrowed:
                self._borrow(0)
            return OWN - held
        # Never more than half of what there is: then there is always something for the next.
        if held > max(self.borrowed, (self._pool.free + self.borrowed) // 2):
            return 0
        self._borrow(held)
        return BATCH

    def give_back(self) -> None:
        """The connection has ended."""
        self._borrow(0)

    def _borrow(self, size: int) -> None:
        self._pool.free += self.borrowed - size
        self.borrowed = size
