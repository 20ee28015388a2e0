"""QEMU's dirty bitmaps in a backup: what has changed since the parent archive, and what will until the next backup.

Of each disk three bitmaps take part. The parent's, which is left in QEMU on purpose, records since the parent's
instant, and goes on until the new archive is durable: so whatever becomes of this run, it is right. A copy of it,
which does not record, is taken at the new instant and read over NBD, for QEMU offers none that records. And a new one
records from that instant on. The last two have the run's own name, so that they are leftovers if it dies; only when
the archive is durable the recording is renamed after it, which QEMU can do by merging, and what it supersedes goes, in
one transaction. A name that tells an archive is therefore always that of one which was made to its end.

QEMU refuses to revert a disk to an internal snapshot while it has bitmaps. Hence what a bitmap does not see, a revert,
cannot happen; and a disk whose image has such snapshots gets none, for its user wants to revert to them.

See docs/interop/bitmaps.rst of QEMU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.errors import SourceError

from .bitmap_names import BitmapName, parse_bitmap_name
from .disks import LeftOut, QemuDisk
from .leftovers import Commands
from .migration import why_not
from .monitor import RefusedError
from .names import copy_name, recording_name

NEEDED = ("block-dirty-bitmap-add", "block-dirty-bitmap-merge", "block-dirty-bitmap-remove")
"""QEMU has them since 4.0, and as parts of a transaction since 4.2."""
KEEPS_BITMAPS = "qcow2"
"""The format whose images keep bitmaps while no QEMU has them open."""
MANY = 8
"""Bitmaps of ours on one disk that are worth a word: each costs QEMU a little memory, and every write a little time."""


@dataclass(frozen=True, slots=True)
class ParentArchive:
    """Whose changes are wanted: its uuid and creation time, and the sizes of its drives in bytes, by their names.

    ``ancestors``: uuids of what it is a delta of. ``unread``: the drives of which it could not read all.
    """

    uuid: bytes
    created: int
    sizes: Mapping[str, int]
    ancestors: frozenset[bytes] = frozenset()
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BitmapRequest:
    """What a run wants of dirty bitmaps: to record since the archive that it makes, and to know what has changed.

    ``archive``, ``created``: its uuid, and its time in seconds since 1970. ``keeps_parent``: whether the parent's
    bitmap stays when the archive is there, since others may be made from the same parent. ``superseded``: uuids of
    other archives of the same series, from which none will be made any more.
    """

    archive: bytes
    created: int
    parent: ParentArchive | None = None
    keeps_parent: bool = False
    superseded: frozenset[bytes] = frozenset()

    def is_own(self, name: BitmapName) -> bool:
        """Whether a bitmap is that of this run's archive. Others may have its uuid, where that was given."""
        return (name.archive, name.created) == (self.archive, self.created)

    def is_superseded(self, name: BitmapName) -> bool:
        """Whether a bitmap is of no use when the archive is there. Those of other series are not ours to judge."""
        if self.is_own(name):
            return False
        if self.parent is None or name.archive in self.superseded:
            return name.archive in self.superseded
        if name.archive == self.parent.uuid:
            return not self.keeps_parent
        return name.archive in self.parent.ancestors or name.parent == self.parent.uuid


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A bitmap as QEMU tells of it. ``granularity`` in bytes; ``trouble``: why it is of no use, or empty."""

    node: str
    name: str
    granularity: int
    trouble: str


def bitmaps_of(node: Mapping[str, Any]) -> list[Bitmap]:
    """The bitmaps of a node that have names, from query-named-block-nodes."""
    told = [one for one in node.get("dirty-bitmaps") or () if one.get("name")]
    return [Bitmap(str(node["node-name"]), str(one["name"]), int(one["granularity"]), _trouble_of(one)) for one in told]


def _trouble_of(told: Mapping[str, Any]) -> str:
    if told.get("inconsistent"):
        return "QEMU's record of its changes is inconsistent, as after a QEMU that was killed"
    if told.get("busy"):
        return "QEMU's record of its changes is in use by something else"
    if not told.get("recording"):
        return "QEMU's record of its changes was switched off"
    return ""


async def nodes_of(monitor: Commands) -> list[dict[str, Any]]:
    """What QEMU tells of all its nodes (RefusedError, MonitorLostError)."""
    return list(await monitor.execute("query-named-block-nodes", {"flat": True}))


@dataclass(slots=True)
class _Tracked:
    """A disk, and the name that its image and job have in QEMU.

    Changing: ``base``, the parent's bitmap, or ``why`` there is none to rely on; whether a new one records, or
    ``unrecorded``, why not.
    """

    disk: QemuDisk
    name: str
    base: Bitmap | None = None
    why: str = ""
    records: bool = False
    unrecorded: str = ""
    persistent: bool = False


class DirtyBitmaps:
    """The bitmaps of one run. Fixed: the monitor, what is wanted. Changing: what there is of each disk."""

    def __init__(self, monitor: Commands, request: BitmapRequest) -> None:
        self._monitor, self._request = monitor, request
        self._tracked: list[_Tracked] = []

    async def look(self, disks: Sequence[QemuDisk], names: Sequence[str]) -> None:
        """See what there is of each disk, whose image and job have these names (RefusedError, MonitorLostError)."""
        nodes = {node["node-name"]: node for node in await nodes_of(self._monitor)}
        self._tracked = [_Tracked(disk, name) for disk, name in zip(disks, names, strict=True)]
        missing = [command for command in NEEDED if not self._monitor.knows(command)]
        for one in self._tracked:
            if missing or one.disk.node not in nodes:
                one.why = one.unrecorded = "this QEMU is too old to tell of changes"
            else:
                self._judge(one, nodes[one.disk.node])

    def _judge(self, one: _Tracked, node: Mapping[str, Any]) -> None:
        found = {bitmap.name: bitmap for bitmap in bitmaps_of(node)}
        ours = [name for name in map(parse_bitmap_name, found) if name is not None]
        one.persistent = node.get("drv") == KEEPS_BITMAPS
        one.why = self._why_not(one.disk, ours, found, persistent=one.persistent)
        if not one.why and (name := self._name_of_parent(one.disk, ours)) is not None:
            one.base = found[str(name)]
        if (node.get("image") or {}).get("snapshots"):
            one.unrecorded = "its image has internal snapshots, to which QEMU does not revert while it records changes"
        elif any(self._request.is_own(name) and name.drive == one.disk.name for name in ours):
            one.unrecorded = "QEMU has a record of an archive with the same uuid and time"
        one.records = not one.unrecorded

    def _name_of_parent(self, disk: QemuDisk, ours: Iterable[BitmapName]) -> BitmapName | None:
        parent = self._request.parent
        if parent is None:
            return None
        wanted = (parent.uuid, parent.created, disk.name)
        return next((name for name in ours if (name.archive, name.created, name.drive) == wanted), None)

    def _why_not(
        self, disk: QemuDisk, ours: Sequence[BitmapName], found: Mapping[str, Bitmap], *, persistent: bool
    ) -> str:
        """Why the parent's bitmap cannot be relied on; empty if it can, or where there is nothing to know."""
        parent = self._request.parent
        if parent is None or disk.name not in parent.sizes:
            return ""
        if (size := parent.sizes[disk.name]) != disk.size:
            return f"it has {disk.size:,} bytes, and had {size:,} in the parent archive"
        if disk.name in parent.unread:
            return "the parent archive has zeros where it could not be read"
        name = self._name_of_parent(disk, ours)
        if name is None:
            end = "" if persistent else ", which ends with QEMU where the image is no qcow2"
            return f"QEMU has no record of its changes since the parent archive{end}"
        return found[str(name)].trouble

    # -- the instant --

    def actions(self) -> list[dict[str, Any]]:
        """What belongs into the transaction, after the actions that keep guests from writing."""
        actions: list[dict[str, Any]] = []
        for one in self._tracked:
            if one.base is not None:
                actions.append(_add(one, copy_name(one.name), disabled=True))
                actions.append(_merge(one, copy_name(one.name), one.base.name))
            if one.records:
                actions.append(_add(one, recording_name(one.name)))
        return actions

    def give_up(self, reason: str) -> None:
        """QEMU has refused the actions: none of them was done."""
        for one in self._tracked:
            if one.base is not None:
                one.base, one.why = None, f"QEMU refuses to copy its record of changes: {reason}"
        self._stop_recording(f"QEMU refuses: {reason}")

    def _stop_recording(self, reason: str) -> None:
        for one in self._tracked:
            if one.records:
                one.records, one.unrecorded = False, reason

    def changed(self, number: int) -> str | None:
        """The name of the bitmap that tells what has changed of a disk, which its export is to offer."""
        one = self._tracked[number]
        return None if one.base is None else copy_name(one.name)

    def distrust(self, number: int, reason: str) -> None:
        """What has changed of a disk cannot be read."""
        self._tracked[number].base, self._tracked[number].why = None, reason

    def why(self, number: int) -> str:
        """Why it is not known what has changed of a disk; empty if it is, or where the parent has no such drive."""
        return self._tracked[number].why

    @property
    def begins(self) -> bool:
        """Whether there are disks whose changes are recorded now, and were not before."""
        return any(one.records and one.base is None for one in self._tracked)

    @property
    def unrecorded(self) -> list[LeftOut]:
        """The disks whose changes from now on nobody records."""
        return [LeftOut(one.disk.name, one.unrecorded) for one in self._tracked if not one.records]

    # -- the end --

    @property
    def recordings(self) -> list[str]:
        """The names of what records now, and is to stay until the archive is there."""
        return [recording_name(one.name) for one in self._tracked if one.records]

    async def keep(self) -> list[str]:
        """The archive is durable: name the recordings after it, and remove what it supersedes.

        Returns what is worth telling, in sentences.
        """
        try:
            return await self._keep()
        except SourceError as error:
            self._stop_recording(str(error))
            return []

    async def _keep(self) -> list[str]:
        if moved := await why_not(self._monitor):
            self._stop_recording(f"the machine {moved}")
            return []
        for one in self._tracked:
            if one.records and (reason := await self._name_after_archive(one)):
                one.records, one.unrecorded = False, f"QEMU refuses: {reason}"
        nodes = {node["node-name"]: node for node in await nodes_of(self._monitor)}
        return [said for one in self._tracked for said in await self._clear(one, nodes.get(one.disk.node, {}))]

    async def _name_after_archive(self, one: _Tracked) -> str:
        """Why it did not succeed, and then the recording is what it was; empty if it did."""
        parent = self._request.parent
        based = parent.uuid if parent is not None and one.disk.name in parent.sizes else None
        name = str(BitmapName(self._request.archive, self._request.created, based, one.disk.name))
        # The new one records before it gets what was recorded, and the old one afterwards: nothing falls in between.
        rest = [_merge(one, name, recording_name(one.name)), _remove(one, recording_name(one.name))]
        reason = ""
        for persistent in [True, False] if one.persistent else [False]:
            reason = await self._try([_add(one, name, persistent=persistent), *rest])
            if not reason:
                break
        return reason

    async def _clear(self, one: _Tracked, node: Mapping[str, Any]) -> list[str]:
        """Remove what is superseded; a sentence where much stays."""
        ours = [name for bitmap in bitmaps_of(node) if (name := parse_bitmap_name(bitmap.name)) is not None]
        superseded = [name for name in ours if self._request.is_superseded(name)]
        for name in superseded:
            await self._try([_remove(one, str(name))])
        if (left := len(ours) - len(superseded)) < MANY:
            return []
        return [f"QEMU keeps {left} records of the changes of disk {one.disk.name}, for as many archives"]

    async def _try(self, actions: list[dict[str, Any]]) -> str:
        """Do all or nothing; what QEMU says against it."""
        try:
            await self._monitor.execute("transaction", {"actions": actions})
        except RefusedError as error:
            return error.reason
        return ""


def _add(one: _Tracked, name: str, **options: bool) -> dict[str, Any]:
    data = {"node": one.disk.node, "name": name, "granularity": CLUSTER_SIZE, **options}
    return {"type": "block-dirty-bitmap-add", "data": data}


def _merge(one: _Tracked, target: str, source: str) -> dict[str, Any]:
    return {"type": "block-dirty-bitmap-merge", "data": {"node": one.disk.node, "target": target, "bitmaps": [source]}}


def _remove(one: _Tracked, name: str) -> dict[str, Any]:
    return {"type": "block-dirty-bitmap-remove", "data": {"node": one.disk.node, "name": name}}
