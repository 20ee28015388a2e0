"""What the watchdog does when we die while a domain's filesystems are frozen: it thaws them, through virsh."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import syslog
import time
from dataclasses import astuple, dataclass

from pybackup.core.guest.thaw_after_death import THAWED
from pybackup.core.system.watchdog_process import Note

from .english import in_english

SECONDS = 600
"""How long it is tried: an agent answers when the guest's disks have taken what a freeze flushes to them."""
ATTEMPT_SECONDS = 1.0
CALL_SECONDS = 60.0
"""How long one call may take: libvirt has it wait for the freeze, up to 30 seconds."""
_COUNT = re.compile(r"\d{1,6}")


@dataclass(frozen=True, slots=True)
class FrozenDomain:
    """The note that filesystems may be frozen from now on: of this domain of the libvirt at ``uri``, by ``program``."""

    uri: str | None
    uuid: str
    name: str
    program: int

    def __str__(self) -> str:
        return json.dumps(astuple(self))

    @classmethod
    def parse(cls, text: str) -> FrozenDomain:
        """What str() made."""
        return cls(*json.loads(text))


def count_of(said: str) -> int:
    """How many filesystems virsh says that it froze, or thawed: the only number that it prints."""
    match = _COUNT.search(said)
    return int(match[0]) if match else 0


def how_to_thaw(name: str) -> str:
    """What somebody can do by hand: a clause."""
    return f"try virsh domfsthaw {name} or, in the guest, fsfreeze --unfreeze MOUNTPOINT"


def thaw_after_death(notes: list[Note]) -> None:
    """Thaw unless the last note says that this was done."""
    program = shutil.which("virsh")
    if not notes or notes[-1].text == THAWED or program is None:
        return
    frozen = FrozenDomain.parse(notes[0].text)
    connect = [program, "--quiet", *([] if frozen.uri is None else ["--connect", frozen.uri])]
    end = time.monotonic() + SECONDS - 5 * ATTEMPT_SECONDS
    while time.monotonic() < end:
        if _succeeds(connect, frozen.uuid):
            _tell(syslog.LOG_WARNING, frozen, "they are thawed now")
            return
        time.sleep(ATTEMPT_SECONDS)
    _tell(syslog.LOG_ERR, frozen, how_to_thaw(frozen.name))


def _succeeds(connect: list[str], uuid: str) -> bool:
    """Whether it is thawed, or has no QEMU any more. One that somebody has paused is asked again when it goes on."""
    if _said(connect, "domfsthaw", "--domain", uuid) is not None:
        return True
    running = _said(connect, "list", "--uuid")
    return running is not None and uuid.encode() not in running.split()


def _said(connect: list[str], *arguments: str) -> bytes | None:
    """What virsh answers; None where it fails, or is too late."""
    command = [*connect, *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CALL_SECONDS, env=in_english()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def _tell(priority: int, frozen: FrozenDomain, what: str) -> None:
    """Nobody may look at our terminal any more, so the system's log is told."""
    syslog.openlog("pybackup", syslog.LOG_PID)
    syslog.syslog(
        priority,
        f"process {frozen.program} was killed or suspended while the filesystems of domain {frozen.name} were frozen:"
        f" {what}",
    )
