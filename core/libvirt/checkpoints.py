"""Checkpoints of libvirt in a backup: what has changed since the parent archive, and what will until the next backup.

A checkpoint is a dirty bitmap on each of a domain's disks that are qcow2, which records from an instant on, whatever
becomes of other checkpoints; libvirt carries them over restarts and external snapshots. Ours are called after the
archive whose instant it is. It is made at that instant, so before there is an archive: until that is durable its
description names the folder of the run, by which leftovers are known; only then it is called kept. The parent's stays
until then. Those of others are left alone.

A checkpoint that is older than the parent will do as well, for it knows of more changes than are asked for: so a night
on which the domain is switched off, when libvirt makes no checkpoint, costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pybackup.core.errors import SourceError
from pybackup.core.system.marked_folder import Life, life_of
from pybackup.formats.backing_files import HEAD_BYTES
from pybackup.formats.errors import FormatError
from pybackup.formats.image_qcow2 import has_snapshots
from pybackup.formats.libvirt_xml import CheckpointXml, DomainDisk, checkpoint, parse_checkpoint, with_description

from .domain import Domain, has_qemu
from .virsh import Virsh, VirshError

KEEPS_BITMAPS = "qcow2"
"""The format whose images keep bitmaps; libvirt makes no checkpoint of others."""
UNDER_WAY = "pybackup: under way in "
KEPT = "pybackup: since the archive with this uuid"
MANY = 8
"""Checkpoints of ours in one domain that are worth a word: every write costs a little time for each."""
_NAME = re.compile(r"pybackup-([0-9a-f]{32})-([0-9]{1,20})")


class ArchiveInstant(NamedTuple):
    """Whose instant a checkpoint is: an archive's uuid, and its creation time in seconds since 1970."""

    uuid: bytes
    created: int

    def __str__(self) -> str:
        return f"pybackup-{self.uuid.hex()}-{self.created}"

    @classmethod
    def parse(cls, name: str) -> ArchiveInstant | None:
        """What str() made; None for the name of somebody else's checkpoint."""
        match = _NAME.fullmatch(name)
        return None if match is None else cls(bytes.fromhex(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class RecordRequest:
    """What a run wants of checkpoints.

    ``archive``: the one that is made. ``lineage``: its parent, and all ancestors of that, newest first; ``sizes``: of
    the parent's drives in bytes; ``unread``: drives of which one of these could not read all. ``keeps_parent``: others
    may be made from the same parent. ``superseded``: uuids of archives from which none will be made any more.
    """

    archive: ArchiveInstant
    lineage: Sequence[ArchiveInstant] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    unread: Collection[str] = ()
    keeps_parent: bool = False
    superseded: frozenset[bytes] = frozenset()

    def is_superseded(self, instant: ArchiveInstant) -> bool:
        """Whether a checkpoint is of no use when the archive is there. Those of other series are not ours to judge."""
        if instant.uuid in self.superseded:
            return True
        if self.keeps_parent and self.lineage and instant.uuid == self.lineage[0].uuid:
            return False
        return instant.uuid in {one.uuid for one in self.lineage} - {self.archive.uuid}


@dataclass(frozen=True, slots=True)
class KnownCheckpoints:
    """Those of ours that a domain has; whether it has snapshots in its images; which disks have, whoever made them."""

    found: Mapping[ArchiveInstant, CheckpointXml]
    has_snapshots: bool
    with_snapshots: Collection[str] = ()


async def look(virsh: Virsh, domain: Domain) -> KnownCheckpoints:
    """See what there is, and remove what killed runs have left (SourceError)."""
    doing = f"look for checkpoints of domain {domain.name}"
    found: dict[ArchiveInstant, CheckpointXml] = {}
    for name in (await virsh.ask(doing, "checkpoint-list", "--domain", domain.uuid, "--name")).split("\n"):
        instant = ArchiveInstant.parse(name)
        if instant is None:
            continue
        text = await virsh.ask(doing, "checkpoint-dumpxml", "--no-domain", "--domain", domain.uuid, name)
        try:
            known = parse_checkpoint(text)
        except FormatError as error:
            raise SourceError(f"cannot {doing}: {error}") from error
        if not known.description.startswith(UNDER_WAY):
            found[instant] = known
        elif life_of(known.description.removeprefix(UNDER_WAY)) is Life.ENDED:
            await delete_checkpoint(virsh, domain.uuid, name)
    snapshots = await virsh.ask(doing, "snapshot-list", "--domain", domain.uuid, "--internal", "--name")
    with_snapshots = [disk.target for disk in domain.now.disks if await asyncio.to_thread(_holds_snapshots, disk)]
    return KnownCheckpoints(found, has_snapshots=bool(snapshots.strip()), with_snapshots=with_snapshots)


def _holds_snapshots(disk: DomainDisk) -> bool:
    """Whether its image has snapshots, also of other programs: `qemu-img snapshot` reverts without a record of it.

    False where that cannot be seen: over a network, or without the right to read.
    """
    if disk.image_format != KEEPS_BITMAPS or disk.kind not in ("file", "block"):
        return False
    try:
        fd = os.open(disk.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return has_snapshots(file.read(HEAD_BYTES))
    except OSError:
        return False


class Checkpoints:
    """Those of one run.

    Fixed: the domain, what is wanted, what was there. Changing: ``since``, the checkpoint to rely on by each disk,
    ``why`` there is none, ``unrecorded``, why nobody will know what changes from now on; ``recorded``, the disks of the
    new checkpoint; ``begins``, whether that is the first one of ours.
    """

    def __init__(self, virsh: Virsh, domain: Domain, request: RecordRequest, known: KnownCheckpoints) -> None:
        self._virsh, self._domain, self._request = virsh, domain, request
        self._known, self._found = known, known.found
        self.name = str(request.archive)
        self.since: dict[str, str] = {}
        self.why: dict[str, str] = {}
        self.unrecorded: dict[str, str] = {}
        self.recorded: list[str] = []
        self._is_there = self.begins = False

    # -- before the instant --

    def judge(self, disks: Sequence[DomainDisk], sizes: Mapping[str, int]) -> None:
        """Decide of each disk whether there is something to rely on, and whether changes are recorded from now on."""
        for disk in disks:
            self._judge_record(disk)
            if disk.target in self._request.sizes:
                self._judge_parent(disk, sizes[disk.target])

    def _judge_record(self, disk: DomainDisk) -> None:
        if disk.image_format != KEEPS_BITMAPS:
            self.unrecorded[disk.target] = f"its image is {disk.image_format}, and libvirt keeps records in qcow2 only"
        elif self._known.has_snapshots or disk.target in self._known.with_snapshots:
            self.unrecorded[disk.target] = (
                "the domain has internal snapshots, to which QEMU does not revert while it records changes"
            )
        elif self._request.archive in self._found:
            self.unrecorded[disk.target] = "there is a record of an archive with the same uuid"
        else:
            self.recorded.append(disk.target)

    def _judge_parent(self, disk: DomainDisk, size: int) -> None:
        before = self._request.sizes[disk.target]
        known = (one for one in self._request.lineage if one in self._found)
        name = next((str(one) for one in known if disk.target in self._found[one].bitmaps), None)
        if size != before:
            self.why[disk.target] = f"it has {size:,} bytes, and had {before:,} in the parent archive"
        elif disk.target in self._request.unread:
            self.why[disk.target] = "the parent archive has zeros where it could not be read"
        elif name is not None:
            self.since[disk.target] = name
        elif disk.image_format != KEEPS_BITMAPS:
            self.why[disk.target] = f"its image is {disk.image_format}, and libvirt keeps records in qcow2 only"
        else:
            self.why[disk.target] = "libvirt has no record of its changes since the parent archive"

    def bitmap(self, target: str) -> str | None:
        """The name of the bitmap in a disk's image that tells what has changed."""
        name = self.since.get(target)
        instant = None if name is None else ArchiveInstant.parse(name)
        return None if instant is None else self._found[instant].bitmaps[target]

    # -- the instant --

    def xml(self, folder: str, others: Sequence[str]) -> str | None:
        """The checkpoint to make at the instant, by the run with this folder; None where there is nothing to record."""
        if not self.recorded:
            return None
        rest = [target for target in others if target not in self.recorded]
        return checkpoint(self.name, f"{UNDER_WAY}{folder}", self.recorded, rest)

    def distrust(self, target: str, reason: str) -> None:
        """What has changed of a disk cannot be told."""
        self.since.pop(target, None)
        self.why[target] = reason

    def give_up(self, reason: str) -> bool:
        """libvirt refuses to begin a job: what of it can be done without; False where there is nothing left of ours.

        It names the disk whose record is missing or broken.
        """
        if self.since:
            named = [target for target in self.since if f"'{target}'" in reason]
            for target in named or list(self.since):
                self.distrust(target, f"libvirt refuses its record of changes: {reason}")
            return True
        if self.recorded:
            self.unrecorded |= dict.fromkeys(self.recorded, f"libvirt refuses: {reason}")
            self.recorded = []
            return True
        return False

    def made(self) -> None:
        """The checkpoint is there, if one was asked for."""
        self._is_there = bool(self.recorded)

    # -- the end --

    async def keep(self) -> list[str]:
        """The archive is durable: call the checkpoint kept, and remove what it supersedes; sentences (SourceError)."""
        if self._is_there:
            self.begins = not self._found
            text = await self._ask("checkpoint-dumpxml", "--no-domain", "--domain", self._domain.uuid, self.name)
            try:
                kept = with_description(text, KEPT)
            except FormatError as error:
                raise SourceError(f"cannot keep checkpoint {self.name}: {error}") from error
            await self._ask("checkpoint-create", "--domain", self._domain.uuid, "/dev/stdin", "--redefine", given=kept)
            self._is_there = False
            left = [one for one in self._found if not self._request.is_superseded(one)]
            for one in self._found:
                if one not in left:
                    await self._delete(str(one))
            if len(left) + 1 >= MANY:
                return [f"libvirt keeps {len(left) + 1} records of the changes of domain {self._domain.name}"]
        return []

    async def drop(self) -> None:
        """Remove the checkpoint that was not kept. Never raises; what stays, the next run removes."""
        if self._is_there:
            self._is_there = False
            with contextlib.suppress(SourceError):
                await self._delete(self.name)

    async def _delete(self, name: str) -> None:
        await delete_checkpoint(self._virsh, self._domain.uuid, name)

    async def _ask(self, command: str, *arguments: str, given: str | None = None) -> str:
        doing = f"look for checkpoints of domain {self._domain.name}"
        return await self._virsh.ask(doing, command, *arguments, given=given)


async def delete_checkpoint(virsh: Virsh, domain: str, name: str) -> None:
    """Remove a checkpoint and its bitmaps, if it is there; it stays where the domain is switched off (SourceError)."""
    doing = f"remove checkpoint {name}"
    try:
        await virsh.ask(doing, "checkpoint-delete", "--domain", domain, name)
    except VirshError as error:
        if not await has_qemu(virsh, domain):
            return
        if name not in (await virsh.ask(doing, "checkpoint-list", "--domain", domain, "--name")).split("\n"):
            return
        if name not in error.reason or "bitmap" not in error.reason.lower():
            raise
        # A disk was restored over, and its bitmap with it: then libvirt removes no more than what it wrote down.
        await virsh.ask(doing, "checkpoint-delete", "--domain", domain, name, "--metadata")
