"""Freezes the filesystems of a domain for the instant of a backup, through libvirt and the guest agent behind it.

What core/guest/filesystem_freeze.py does over an agent's socket, for a domain whose agent libvirt talks to: nobody else
can. Who sent a freeze thaws, whatever the answer was; where we are killed, or suspended, a watchdog does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pybackup.core.guest.held_filesystems import HeldFilesystems, Wording
from pybackup.core.system.watchdog import Watchdog

from .domain import Domain, has_qemu
from .thaw import ATTEMPT_SECONDS, CALL_SECONDS, SECONDS, FrozenDomain, count_of, how_to_thaw, thaw_after_death
from .virsh import Virsh, VirshError

HOLD_SECONDS = 30.0
"""How long the instant may take before the watchdog thaws although we live: then we are suspended, or QEMU hangs."""
_NOTHING_FROZEN = re.compile("agent is not (configured|connected)|domain is not running|has been disabled", re.I)
"""What is said where libvirt has asked no agent for anything; and by an agent that must not freeze, or has already, for
somebody else, whose freeze it stays."""


class Wish(Enum):
    """Whether filesystems are to be frozen."""

    AUTO = "auto"
    """Where there is an agent; without, the archive is crash-consistent."""
    NEVER = "never"
    REQUIRE = "require"
    """Else there is no backup."""


@dataclass(frozen=True, slots=True)
class FreezeOptions:
    """Whether to freeze, and how long that may take (seconds)."""

    wish: Wish = Wish.AUTO
    seconds: float = 10.0


class DomainFreeze(HeldFilesystems):
    """One freeze of one domain. Fixed: the domain, the options, who is told of trouble."""

    def __init__(self, virsh: Virsh, domain: Domain, options: FreezeOptions, tell: Callable[[str], None]) -> None:
        """``tell`` is called with sentences for the user, about a guest that may hang."""
        whose = f"domain {domain.name}"
        wording = Wording(f"the guest agent of {whose}", f"the filesystems of {whose}", how_to_thaw(domain.name))
        super().__init__(wording, tell, is_required=options.wish is Wish.REQUIRE)
        self._virsh, self._domain, self._options = virsh, domain, options

    async def _prepare(self) -> None:
        try:
            self._watchdog = Watchdog(thaw_after_death, seconds=SECONDS)
            await self._watchdog.ready()
        except OSError as error:
            self._watchdog = None
            self._reason = f"nothing would have thawed them if pybackup had been killed: {error}"

    async def _freeze(self) -> None:
        if self._watchdog is None:
            return
        self._began = time.monotonic()
        try:
            note = str(FrozenDomain(self._virsh.uri, self._domain.uuid, self._domain.name, os.getpid()))
            self._watchdog.hand_over(note, within=self._options.seconds + HOLD_SECONDS)
            said = await self._virsh.ask(
                f"freeze the filesystems of domain {self._domain.name}",
                "domfsfreeze",
                "--domain",
                self._domain.uuid,
                seconds=self._options.seconds,
            )
            self._watchdog.hand_over("frozen", within=HOLD_SECONDS)
        except VirshError as error:
            self._reason = error.reason
            if _NOTHING_FROZEN.search(error.reason):
                await self._let_go()
        except OSError as error:
            self._reason = f"nothing would have thawed them if pybackup had been killed: {error}"
        else:
            self._frozen = count_of(said)

    async def _ask_to_thaw(self) -> int | None:
        """Ask until libvirt says that it was done; what it is asked meanwhile waits there for the freeze to end."""
        while True:
            self._note("to be thawed", HOLD_SECONDS + CALL_SECONDS)
            with contextlib.suppress(VirshError):
                return count_of(
                    await self._virsh.ask(
                        "thaw the filesystems", "domfsthaw", "--domain", self._domain.uuid, seconds=CALL_SECONDS
                    )
                )
            with contextlib.suppress(VirshError):
                if not await has_qemu(self._virsh, self._domain.uuid):
                    return None  # it has ended, and nothing is frozen any more
            await asyncio.sleep(ATTEMPT_SECONDS)
