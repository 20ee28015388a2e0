"""Whether a backup boots: a machine that is thrown away, on the archive's drives, which can be written to."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pybackup.core.errors import RequestError
from pybackup.core.nbd.server import NbdServer
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace
from pybackup.core.qemu.handover import default_folder
from pybackup.core.qemu.throwaway import (
    Bus,
    Disk,
    MachineRequest,
    NotStartedError,
    arguments,
    bus_of,
    find_firmware,
    find_qemu,
    kvm_is_usable,
    machine,
)
from pybackup.core.system.private_folder import private_folder

from .writable import WritableRequest, writable

LONGEST_LINE, LINES_KEPT = 2048, 20
"""Characters of a line that are looked at, and lines that are told of a machine that did not come so far."""
NO_DISKS = re.compile(r"(^|[^a-z])(efidisk|tpmstate)\d|^vmstate$")
"""Drives that Proxmox keeps beside the disks: variables of UEFI, a TPM, and memory."""
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][0-9A-Za-z]|[=>78cDEHM])|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CUT_ESCAPE = re.compile(r"\x1b(\[[0-?]{0,30}[ -/]{0,4}|[()]?)\Z")
"""An escape sequence that is not complete."""


@dataclass(frozen=True, slots=True)
class BootRequest:
    """What is asked. ``check``: what a line of the serial console has to match; ``timeout`` in seconds, with it.
    ``kvm``: if it can be used.

    ``drives``: those that the machine gets, in their order; none for all. The rest: as of a MachineRequest.
    """

    archive: ArchivePlace
    check: re.Pattern[str] | None
    timeout: float
    memory: int
    bus: Bus
    uefi: bool
    vnc: str | None
    window: bool
    kvm: bool = True
    drives: Sequence[str] = ()
    parents: Sequence[HistoryPlace] = ()


@dataclass(slots=True)
class Boot:
    """What became of it. ``matched``: the line; None where none did. ``seconds``: until then, or until the end."""

    kvm: bool
    disks: Sequence[Disk]
    matched: str | None = None
    seconds: float = 0.0
    timed_out: bool = False
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))


class Console:
    """Cuts what a guest prints into lines. Changing: the line that is not complete yet, and the last ones."""

    def __init__(self, check: re.Pattern[str] | None, lines: deque[str], show: Callable[[str], None]) -> None:
        self._check, self._lines, self._show = check, lines, show
        self._begun = self._cut = ""
        self.matched: str | None = None

    def take(self, part: bytes) -> bool:
        """More was printed; True when a line matches."""
        text = part.decode("utf-8", "replace")
        *whole, rest = (self._begun + text).replace("\r\n", "\n").split("\n")
        text = self._cut + text
        cut = _CUT_ESCAPE.search(text)
        self._cut = cut[0] if cut else ""
        self._show(_ESCAPES.sub("", text[: len(text) - len(self._cut)]))
        for line in whole:
            self._look(line)
            if self.matched is None:
                self._lines.append(_plain(line))
        self._begun = rest[-LONGEST_LINE:]
        self._look(self._begun)
        return self.matched is not None

    def _look(self, line: str) -> None:
        if self._check is not None and self.matched is None and self._check.search(_plain(line)):
            self.matched = _plain(line)


def _plain(line: str) -> str:
    """What is left without colours and the like."""
    return _ESCAPES.sub("", line[-LONGEST_LINE:])


async def boot(
    request: BootRequest, *, show: Callable[[str], None], note: Callable[[str], None], warn: Callable[[str], None]
) -> Boot:
    """Start the machine, and wait until a line matches, the time is over, or it has ended. Raises every PybackupError.

    ``show``: what is printed on the serial console; ``note``: a sentence that helps to know.
    """
    program, kvm = find_qemu(), request.kvm and kvm_is_usable()
    if request.uefi:
        find_firmware()
    slowly = "so the machine's instructions are translated one by one, which takes longer"
    if request.kvm and not kvm:
        note(f"KVM cannot be used here, {slowly}")
    wanted = WritableRequest(request.archive, default_folder(), None, request.parents)
    async with writable(wanted, warn=warn) as (drives, stop):
        disks = _disks(request, list(drives))
        with private_folder() as folder:
            socket = os.path.join(folder, "nbd.sock")
            nbd = NbdServer(drives)
            try:
                await nbd.start_unix(socket)
                try:
                    return await _watch(request, Boot(kvm, disks), program, socket, show)
                except NotStartedError as error:
                    # There may be a KVM that does less than it says, as within other virtual machines.
                    if not kvm:
                        raise
                    note(f"{error}: this was with KVM, {slowly}")
                    return await _watch(request, Boot(False, disks), program, socket, show)
            finally:
                stop()  # what waits for a store that does not answer would be waited for, too
                await nbd.close()


def _disks(request: BootRequest, names: Sequence[str]) -> list[Disk]:
    missing = [name for name in request.drives if name not in names]
    if missing:
        raise RequestError(f"{request.archive} has no drive {missing[0]!r}; it has {', '.join(names)}")
    wanted = request.drives or [name for name in names if not NO_DISKS.search(name)]
    if not wanted:
        raise RequestError(f"{request.archive} has no disk that a machine could boot from")
    return [Disk(name, bus_of(name, request.bus)) for name in wanted]


async def _watch(request: BootRequest, outcome: Boot, program: str, socket: str, show: Callable[[str], None]) -> Boot:
    wanted = MachineRequest(
        outcome.disks,
        request.memory,
        request.uefi,
        request.vnc,
        request.window,
        ends_at_reboot=request.check is not None,
    )
    console = Console(request.check, outcome.last_lines, show)
    begun = time.monotonic()
    async with machine(program, arguments(wanted, socket, kvm=outcome.kvm)) as started:
        try:
            async with asyncio.timeout(request.timeout if request.check is not None else None):
                await started.console(console.take)
        except TimeoutError:
            outcome.timed_out = True
    outcome.seconds, outcome.matched = time.monotonic() - begun, console.matched
    return outcome
