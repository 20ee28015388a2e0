"""Nights of one machine whose changes QEMU's dirty bitmaps tell, without an archive: what they tell is the test.

What the disks held in the night before is brought up to date with the clusters that may have changed, and with these
alone; it must be what the disks hold now.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from live.qemu_processes import Qemu

from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.nbd.client import NbdDevice
from pybackup.core.qemu.bitmap_names import BitmapName, parse_bitmap_name
from pybackup.core.qemu.bitmaps import BitmapRequest, ParentArchive, bitmaps_of
from pybackup.core.qemu.changes import BitmapChanges
from pybackup.core.qemu.fleecing import Fleecing, FleecingOptions
from pybackup.core.qemu.running import RunningQemu
from pybackup.core.trace import Trace


class Told(NamedTuple):
    """What a night came to know of a disk: its content, the clusters that may have changed, or why nobody knows."""

    content: bytes
    changed: frozenset[int] | None
    why: str


@dataclass
class Night:
    """An archive that might have been: its request, what was told of each disk, and what of the end."""

    request: BitmapRequest
    disks: dict[str, Told] = field(repr=False)  # asyncio shows what a task returns
    said: list[str] = field(default_factory=list)

    @property
    def parent(self) -> ParentArchive:
        """As the parent of the next."""
        sizes = {name: len(told.content) for name, told in self.disks.items()}
        above = self.request.parent
        ancestors = frozenset() if above is None else above.ancestors | {above.uuid}
        return ParentArchive(self.request.archive, self.request.created, sizes, ancestors)


class Series:
    """Nights, each the child of the one before, over a server of QEMU's own or a shared one."""

    def __init__(self, qemu: Qemu, *, shared: bool = False, keeps_parent: bool = False) -> None:
        self.qemu, self.shared, self.keeps_parent = qemu, shared, keeps_parent
        self.nights: list[Night] = []

    def night(
        self,
        during: Callable[[], None] = lambda: None,
        *,
        just_before: Callable[[], None] = lambda: None,
        becomes_archive: bool = True,
    ) -> Night:
        """One more; ``during`` is called after the instant. Whether what it made ``becomes_archive``."""
        parent = self.nights[-1].parent if self.nights else None
        created = 1_800_000_000 + len(self.nights)
        request = BitmapRequest(uuid.uuid4().bytes, created, parent, keeps_parent=self.keeps_parent)
        night = asyncio.run(self._worked(request, during, just_before, becomes_archive))
        if becomes_archive:
            self.nights.append(night)
        return night

    async def _worked(
        self,
        request: BitmapRequest,
        during: Callable[[], None],
        just_before: Callable[[], None],
        becomes_archive: bool,
    ) -> Night:
        @contextlib.asynccontextmanager
        async def held() -> AsyncIterator[None]:
            just_before()
            yield

        machine = await RunningQemu.connect(self.qemu.monitor)
        options = FleecingOptions(str(self.qemu.fleece), nbd_socket=self.qemu.guests if self.shared else None)
        fleecing = machine.fleecing(options, Trace(), request)
        try:
            opened = await fleecing.start(held)
            await asyncio.to_thread(during)
            night = Night(request, await _read(fleecing, opened))
            await fleecing.check()
            assert await fleecing.let_go() == []
            if becomes_archive:
                night.said += await fleecing.keep_bitmaps()
                night.said += [f"{name}: {reason}" for name, reason in fleecing.unrecorded]
        finally:
            assert await fleecing.end() == []
            await machine.close()
        return night

    def check(self) -> dict[str, int]:
        """The last night's disks are those of the night before with what has changed; how many clusters that were.

        A disk of which nobody knows counts -1.
        """
        before, now = self.nights[-2].disks, self.nights[-1].disks
        return {name: _check(before[name].content, told) for name, told in now.items() if name in before}


def _check(before: bytes, now: Told) -> int:
    if now.changed is None:
        assert now.why
        return -1
    content = bytearray(before)
    for cluster in now.changed:
        at = cluster * CLUSTER_SIZE
        content[at : at + CLUSTER_SIZE] = now.content[at : at + CLUSTER_SIZE]
    assert content == now.content, "something has changed that the bitmap does not know of"
    return len(now.changed)


async def _read(fleecing: Fleecing, opened: Sequence[NbdDevice]) -> dict[str, Told]:
    found: dict[str, Told] = {}
    for number, disk in enumerate(fleecing.disks):
        changes = fleecing.changes[number]
        content = bytes(await opened[number].pread(0, disk.size))
        if isinstance(changes, BitmapChanges):
            found[disk.name] = Told(content, await _clusters(changes, disk.size), "")
        else:
            found[disk.name] = Told(content, None, changes)
    return found


async def _clusters(changes: BitmapChanges, size: int) -> frozenset[int]:
    clusters = -(-size // CLUSTER_SIZE)
    found: set[int] = set()
    at = 0
    while at < clusters:
        end, changed = await changes.run_at(at)
        assert at < end <= clusters
        found |= set(range(at, end)) if changed else set()
        at = end
    return frozenset(found)


def kept(qemu: Qemu) -> dict[str, list[BitmapName]]:
    """The bitmaps of ours that stay on purpose, by the drive that they are of; there must be no others of ours."""
    found: dict[str, list[BitmapName]] = {}
    for node in qemu.ask("query-named-block-nodes", {"flat": True}):
        for bitmap in bitmaps_of(node):
            name = parse_bitmap_name(bitmap.name)
            assert name is not None, bitmap
            found.setdefault(name.drive, []).append(name)
    return found
