"""Removes from a QEMU the dirty bitmaps that backups have left there on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pybackup.core.errors import SourceError

from .bitmap_names import BitmapName, parse_bitmap_name
from .bitmaps import bitmaps_of, nodes_of
from .leftovers import remove_leftovers
from .monitor import Monitor, RefusedError


class Forgotten(NamedTuple):
    """A bitmap: the node that has, or had, it; what its name tells; and why QEMU keeps it, empty where it is gone."""

    node: str
    name: BitmapName
    reason: str


async def forget_bitmaps(path: str) -> Sequence[Forgotten]:
    """Remove all bitmaps of archives from the machine whose monitor listens at ``path`` (SourceError, BusyError).

    What killed runs have left goes first. While a run is under way there nothing is removed: BusyError.
    """
    monitor = await Monitor.connect(path)
    try:
        if not monitor.knows("query-named-block-nodes") or not monitor.knows("block-dirty-bitmap-remove"):
            raise SourceError(f"QEMU at {path} is too old to have dirty bitmaps")
        await remove_leftovers(monitor)
        return [await _forget(monitor, node, name) for node, name in await _ours(monitor)]
    finally:
        await monitor.close()


async def _ours(monitor: Monitor) -> list[tuple[str, BitmapName]]:
    found = [bitmap for node in await nodes_of(monitor) for bitmap in bitmaps_of(node)]
    return [(bitmap.node, name) for bitmap in found if (name := parse_bitmap_name(bitmap.name)) is not None]


async def _forget(monitor: Monitor, node: str, name: BitmapName) -> Forgotten:
    try:
        await monitor.execute("block-dirty-bitmap-remove", {"node": node, "name": str(name)})
    except RefusedError as error:
        return Forgotten(node, name, error.reason)
    return Forgotten(node, name, "")
