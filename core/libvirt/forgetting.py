"""Removes from a domain the checkpoints that backups have left there on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pybackup.core.errors import SourceError

from .checkpoints import ArchiveInstant, delete_checkpoint, look
from .domain import find_domain
from .pulled_job import clear_way
from .virsh import Virsh


class ForgottenCheckpoint(NamedTuple):
    """A checkpoint: since when it records, on which disks, and why libvirt keeps it, empty where it is gone."""

    instant: ArchiveInstant
    disks: Sequence[str]
    reason: str


async def forget_checkpoints(uri: str | None, name: str) -> Sequence[ForgottenCheckpoint]:
    """Remove all checkpoints of archives from a domain, or say why each stays (SourceError, BusyError, RequestError).

    While a run is under way there nothing is removed: BusyError.
    """
    virsh = await Virsh.connect(uri)
    domain = await find_domain(virsh, name)
    if domain.is_active:
        await clear_way(virsh, domain.uuid, domain.name)
    forgotten = []
    for instant, checkpoint in (await look(virsh, domain)).found.items():
        reason = "" if domain.is_active else f"domain {domain.name} is switched off, and libvirt removes none then"
        try:
            if not reason:
                await delete_checkpoint(virsh, domain.uuid, str(instant))
        except SourceError as error:
            reason = str(error)
        forgotten.append(ForgottenCheckpoint(instant, sorted(checkpoint.bitmaps), reason))
    return forgotten
