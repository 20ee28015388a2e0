"""A machine that is on its way to another host, or comes from there: its disks are not its own meanwhile."""

from __future__ import annotations

import asyncio

from pybackup.core.errors import BusyError, PybackupError, SourceError

from .leftovers import Commands
from .monitor import Monitor

PERIOD = 0.5
"""Seconds between two looks during a backup: a migration takes longer, and tells of itself only when asked to."""
_STATES = {
    "inmigrate": "waits for a migration to come in (-incoming), and until then its disks belong to another machine:"
    " back up that one, or this one when the migration has ended",
    "finish-migrate": "is being migrated to another host; back it up there",
    "postmigrate": "was migrated to another host, and its disks with it; back it up there",
    "colo": "is kept in step with one on another host (COLO), and both use the disks",
}
_UNDER_WAY = (
    *("setup", "wait-unplug", "active", "pre-switchover", "device", "colo", "cancelling"),
    *("postcopy-active", "postcopy-paused", "postcopy-recover", "postcopy-recover-setup"),
)
"""What query-migrate says of a migration that has not ended."""


async def why_not(monitor: Commands) -> str | None:
    """Why a machine is not to be backed up now; None if it may be."""
    if monitor.knows("query-status"):
        status = (await monitor.execute("query-status"))["status"]
        if status in _STATES:
            return _STATES[status]
    told = await monitor.execute("query-migrate") if monitor.knows("query-migrate") else {}
    if told.get("status") in _UNDER_WAY:
        return "is being migrated to another host; back it up when that has ended"
    return None


async def refuse_migration(monitor: Monitor) -> None:
    """BusyError where a migration is under way, or is waited for."""
    if reason := await why_not(monitor):
        raise BusyError(f"the machine of the monitor at {monitor.path} {reason}")


async def wait_for_migration(monitor: Monitor) -> PybackupError:
    """Return when a migration has begun, which would fail in the end if the backup still ran then.

    Also when nobody can tell any more; never raises.
    """
    try:
        while await why_not(monitor) is None:  # noqa: ASYNC110 - in QEMU
            await asyncio.sleep(PERIOD)
    except SourceError as lost:
        return lost
    return BusyError(
        f"a migration of the machine of the monitor at {monitor.path} has begun, and cannot end while a backup runs; so"
        " the backup has ended itself"
    )
