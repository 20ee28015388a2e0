"""What is done for a run that was killed: its backup job is ended, seconds later, whoever comes next.

It happens in the watchdog's process (system/watchdog.py), which holds the lock of the run's folder, so that it counts
as the run itself, and the run's connections to QEMU's NBD server, so that QEMU does not see them end before its server
does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from pybackup.core.system.watchdog_process import Note

ACT_SECONDS = 240
"""How long it may take: libvirt answers when what it does for others on this domain is done."""
LATE_SECONDS = 35.0
"""How long a job may take to begin that a run asked for, and died: libvirt waits for others for 30 seconds."""
FOLDER = "folder"
"""The note with the mark of the run's folder."""
BEGINNING = "beginning"
"""The note that the job is asked for."""
BEGUN = "begun"
"""The note that the job is there."""
CHECKPOINT = "checkpoint "
"""The beginning of the note with the name of a checkpoint that goes, too, unless the last note is KEPT."""
KEPT = "kept"
CONNECTION = "connection"
"""The note with a connection to be kept open."""


@dataclass(frozen=True, slots=True)
class DeadRun:
    """The note that comes first.

    ``uri`` of libvirt, ``domain``'s uuid, ``folder`` of the run, number of its ``process``, and bytes that are to stay
    free where the folder is (``reserve``).
    """

    uri: str | None
    domain: str
    folder: str
    process: int
    reserve: int

    def __str__(self) -> str:
        return json.dumps(astuple(self))

    @classmethod
    def parse(cls, text: str) -> DeadRun:
        """What str() made."""
        return cls(*json.loads(text))


def wake_run(notes: list[Note]) -> None:
    """What the watchdog does meanwhile: where the room gets short, it wakes the run if that is suspended.

    A run that lives ends itself before a guest's write fails for want of room; one that was stopped (Ctrl-Z, SIGSTOP)
    would not know of it. One that runs does not notice the signal.
    """
    if not notes:
        return
    run = DeadRun.parse(notes[0].text)
    with contextlib.suppress(OSError):
        room = os.statvfs(os.path.dirname(run.folder))
        if room.f_bavail * room.f_frsize < run.reserve and os.getppid() == run.process:
            os.kill(run.process, signal.SIGCONT)


def end_dead_run(notes: list[Note]) -> None:
    """The watchdog's act."""
    import asyncio

    if notes:
        asyncio.run(_end(DeadRun.parse(notes[0].text), notes[1:]))


async def _end(run: DeadRun, notes: Sequence[Note]) -> None:
    from pybackup.core.system.marked_folder import remove_stale

    from .pulled_job import PREFIXES

    said = [note.text for note in notes]
    if BEGINNING in said:
        await _end_job(run, 0 if BEGUN in said else LATE_SECONDS)
        if KEPT not in said:
            await _drop_checkpoints(
                run, [text.removeprefix(CHECKPOINT) for text in said if text.startswith(CHECKPOINT)]
            )
    for note in notes:
        if note.text == FOLDER:
            os.close(note.descriptors[0])
    remove_stale(run.folder, PREFIXES)


async def _drop_checkpoints(run: DeadRun, names: Sequence[str]) -> None:
    from pybackup.core.errors import SourceError

    from .checkpoints import delete_checkpoint
    from .virsh import Virsh

    for name in names:
        with contextlib.suppress(SourceError):
            await delete_checkpoint(Virsh(run.uri), run.domain, name)


async def _end_job(run: DeadRun, late: float) -> None:
    """End the job, which may begin only ``late`` seconds from now."""
    import asyncio
    import time

    from pybackup.core.errors import SourceError

    from .pulled_job import LOOK_SECONDS, SOCKET, current_job, end_job
    from .virsh import Virsh

    virsh, socket = Virsh(run.uri), os.path.join(run.folder, SOCKET)
    until, was_there = time.monotonic() + late, False
    while True:
        with contextlib.suppress(SourceError):
            job = await current_job(virsh, run.domain)
            if job is not None and job.socket == socket:
                was_there = True
                await end_job(virsh, run.domain, socket)
            elif was_there or time.monotonic() >= until:
                return
        await asyncio.sleep(LOOK_SECONDS)
