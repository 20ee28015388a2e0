"""A dirty bitmap that QEMU's NBD server offers beside an export: which ranges were written to.

It is a metadata context, ``qemu:dirty-bitmap:NAME``, specified in docs/interop/nbd.txt of QEMU: bit 0 of a range's
flags says that it is dirty.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from typing import NamedTuple

from pybackup.core.errors import SourceError
from pybackup.core.places.nbd_uri import NbdAddress
from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError

from .client import CONNECT_SECONDS, STATUS_STEP
from .negotiation import Prepare, Refused, connect
from .session import Batch, ConnectionLost, NbdSession

SMALLEST_GRANULARITY = 4096
"""Bytes that a bit of a bitmap stands for at least, unless whoever made it said otherwise."""


class DirtyRange(NamedTuple):
    """Bytes [offset, end) are alike: written to, or not."""

    offset: int
    end: int
    dirty: bool


class NbdDirtyBitmap:
    """One connection to an export, to ask for its bitmap. Made by connect(). Fixed: the session."""

    def __init__(self, session: NbdSession, name: str, granularity: int, data_at_once: int) -> None:
        self._session, self._name = session, name
        # No range is shorter than a bit is wide, so that a reply has its bound.
        self._step = min(STATUS_STEP, max(1, data_at_once // wire.DESCRIPTOR.size) * granularity)

    @classmethod
    async def connect(
        cls, address: NbdAddress, bitmap: str, *, granularity: int, prepare: Prepare, data_at_once: int
    ) -> NbdDirtyBitmap | None:
        """Connect to the export that offers ``bitmap``, whose bits stand for ``granularity`` bytes each.

        None where it is not offered. ``prepare`` and ``data_at_once`` as for NbdDevice. Raises SourceError.
        """
        context = wire.DIRTY_BITMAP + bitmap
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                sock, agreed = await connect(address, prepare, context)
        except TimeoutError:
            raise SourceError(f"the bitmap of {address} cannot be read: the NBD server does not answer") from None
        except (OSError, FormatError, Refused) as error:
            raise SourceError(f"the bitmap of {address} cannot be read: {_reason(error)}") from error
        session = await NbdSession.over(sock, agreed)
        session.ask_one_by_one()
        bitmap_of = cls(session, str(address), granularity, data_at_once)
        if agreed.context is None:
            await bitmap_of.abort()
            return None
        return bitmap_of

    @property
    def size(self) -> int:
        """Bytes of the export."""
        return self._session.agreed.size

    async def ranges(self, offset: int) -> Sequence[DirtyRange]:
        """What is known from ``offset`` on, which is a multiple of the granularity: at least one range, none empty.

        The first begins there. They may end before the disk does, never behind it. Raises OSError where the server
        refuses, SourceError where it has gone.
        """
        length = min(self._step, self.size - offset)
        batch = Batch()
        try:
            request = await self._session.ask(wire.CMD_BLOCK_STATUS, offset, length, batch)
            await batch.wait()
        except ConnectionLost as lost:
            raise SourceError(f"{self._name}: {lost}") from None
        found: list[DirtyRange] = []
        at = offset
        for size, flags in request.extents:
            end = min(at + size, self.size)
            if at < end:
                found.append(DirtyRange(at, end, bool(flags)))  # flags that we do not know may mean anything
            at = end
        if not found:
            raise OSError(errno.EIO, "the NBD server tells nothing of its bitmap", self._name)
        return found

    async def abort(self) -> None:
        """Go without a word."""
        await self._session.abort()


def _reason(error: OSError | FormatError | Refused) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return error.what if isinstance(error, FormatError) else str(error)
