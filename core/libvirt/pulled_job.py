"""The backup job that a domain has, if it has one, and how it is ended.

A domain has one such job at most. That it is ours is told by its socket: it lies in a private folder of a run, whose
name carries a checksum; and by the lock in that folder whether the run lives (see core/system/marked_folder.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

from pybackup.core.errors import BusyError, SourceError
from pybackup.core.qemu.names import run_of_folder
from pybackup.core.system.marked_folder import Life, life_of, remove_stale
from pybackup.formats.errors import FormatError
from pybackup.formats.libvirt_xml import BackupJobXml, parse_backup_job

from .domain import facts, has_qemu
from .virsh import NoAnswerError, Virsh, VirshError

SOCKET = "nbd"
SCRATCH = "image-"
REQUEST = "request-"
PREFIXES = (SOCKET, SCRATCH, REQUEST)
"""What the names of all that is in a run's folder begin with."""
END_SECONDS = 60.0
"""How long a job may take to end: requests that are under way on slow disks have to come to their end."""
GUARDIAN_SECONDS = 3.0
"""How long a run that is found alive may be one that was killed, whose guardian is at work: that takes less."""
LOOK_SECONDS = 0.1
_NO_JOB = ("no domain backup job present", "domain is not running", "domain not found", "failed to get domain")


async def current_job(virsh: Virsh, domain: str) -> BackupJobXml | None:
    """The backup job of a domain, by its uuid; None where there is none, or no domain (SourceError)."""
    doing = f"look for a backup job of domain {domain}"
    try:
        return parse_backup_job(await virsh.ask(doing, "backup-dumpxml", "--domain", domain))
    except VirshError as error:
        no_answer = isinstance(error, NoAnswerError)
        if any(one in error.reason.lower() for one in _NO_JOB) or (not no_answer and await _has_none(virsh, domain)):
            return None
        raise
    except FormatError as error:
        raise SourceError(f"cannot {doing}: {error}") from error


async def _has_none(virsh: Virsh, domain: str) -> bool:
    """Whether a domain has no backup job, told by what virsh itself prints: the daemon may speak any language."""
    if not await has_qemu(virsh, domain):
        return True
    said = facts(await virsh.ask(f"look for a job of domain {domain}", "domjobinfo", "--domain", domain))
    return said.get("Job type") == "None" or said.get("Operation", "Backup") != "Backup"


async def end_job(virsh: Virsh, domain: str, socket: str) -> bool:
    """End the job with this socket, if it is there; whether it has gone (SourceError)."""
    until = time.monotonic() + END_SECONDS
    while True:
        job = await current_job(virsh, domain)
        if job is None or job.socket != socket:
            return True
        if time.monotonic() > until:
            return False
        with contextlib.suppress(VirshError):  # it has ended meanwhile, or is just ending
            await virsh.ask("end the backup job", "domjobabort", "--domain", domain)
        await asyncio.sleep(LOOK_SECONDS)


def folder_of_ours(job: BackupJobXml) -> str | None:
    """The folder of the run of ours that began the job; None if it is somebody else's."""
    folder, name = os.path.split(job.socket)
    is_ours = name == SOCKET and os.path.isabs(folder) and run_of_folder(os.path.basename(folder)) is not None
    return folder if is_ours else None


async def clear_way(virsh: Virsh, domain: str, name: str) -> None:
    """End the job of a killed run (BusyError where there is one of somebody else, or of a run that lives)."""
    until = time.monotonic() + GUARDIAN_SECONDS
    while (job := await current_job(virsh, domain)) is not None:
        folder = folder_of_ours(job)
        if folder is None:
            raise BusyError(f"domain {name} has a backup job of somebody else")
        life = life_of(folder)
        if life is Life.UNKNOWN:
            raise BusyError(f"domain {name} has a backup job that another user's pybackup has begun")
        if life is Life.LIVES:
            if time.monotonic() > until:
                raise BusyError(f"another pybackup is backing up domain {name}")
            await asyncio.sleep(LOOK_SECONDS)
            continue
        if not await end_job(virsh, domain, job.socket):
            raise BusyError(f"a killed run has left a backup job of domain {name}, and libvirt does not end it")
        remove_stale(folder, PREFIXES)


def remove_stale_folders(parent: str) -> None:
    """Remove what killed runs have left in a folder (OSError)."""
    for name in os.listdir(parent):
        if run_of_folder(name) is not None:
            remove_stale(os.path.join(parent, name), PREFIXES)
