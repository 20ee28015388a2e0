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
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pybackup.core.errors import SourceError
from pybackup.core.guest.consistency import CRASH
from pybackup.core.system.watchdog import Watchdog
from pybackup.core.tasks import end_within, uninterrupted

from .domain import Domain
from .thaw import (
    ATTEMPT_SECONDS,
    CALL_SECONDS,
    SECONDS,
    THAWED,
    FrozenDomain,
    count_of,
    how_to_thaw,
    thaw_after_death,
)
from .virsh import Virsh, VirshError

HOLD_SECONDS = 30.0
"""How long the instant may take before the watchdog thaws although we live: then we are suspended, or QEMU hangs."""
TELL_SECONDS = 5.0
"""After so long without an answer to the thaw, the user is told."""
PATIENCE_SECONDS = 10.0
"""A backup that has come to its end waits so long for the thaw, and leaves it to the watchdog then."""
_NOTHING_SENT = re.compile("agent is not (configured|connected)|domain is not running", re.I)
"""What libvirt says where it has asked no agent for anything."""


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


class DomainFreeze:
    """One freeze of one domain.

    Fixed: the domain, the options, who is told of trouble. Changing: the watchdog, which is there until the thaw has
    worked; what the agent said; ``_reason``, why nothing was frozen.
    """

    def __init__(self, virsh: Virsh, domain: Domain, options: FreezeOptions, tell: Callable[[str], None]) -> None:
        """``tell`` is called with sentences for the user, about a guest that may hang."""
        self._virsh, self._domain, self._options, self._tell = virsh, domain, options, tell
        self._watchdog: Watchdog | None = None
        self._thawing: asyncio.Task[None] | None = None
        self._reason: str | None = None
        self._frozen = 0
        self._thawed: int | None = None
        self._began = self._ended = self._seconds = 0.0
        self._is_over = self._has_warned = False

    def facts(self) -> dict[str, Any]:
        """What is known of the instant, to be stored in an archive and reported: seconds, a reason that is a clause."""
        if not self._is_over:
            return {}
        reason = self._reason or self._doubt()
        if reason is not None:
            return {**CRASH, "consistency_reason": reason}
        return {"consistency": "filesystem", "filesystems": self._frozen, "frozen_seconds": round(self._seconds, 3)}

    def _doubt(self) -> str | None:
        who = f"the guest agent of domain {self._domain.name}"
        if not self._frozen:
            return f"{who} froze no filesystem"
        if self._thawed is None:
            return f"{who} did not say whether they were frozen until after the instant"
        if self._thawed < self._frozen:
            return f"of {self._frozen} filesystems only {self._thawed} were still frozen after the instant"
        return None

    # -- the instant --

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The body is the instant: let it take no time that can be spared, for the guest cannot write meanwhile.

        SourceError where a freeze is required, and did not work.
        """
        try:
            await self._prepare()
            await self._freeze()
            if self._options.wish is Wish.REQUIRE and not self._frozen:
                why = self._reason or self._doubt()
                raise SourceError(f"the filesystems of domain {self._domain.name} could not be frozen: {why}")
            yield
        finally:
            await uninterrupted(self._end_instant())

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
            if _NOTHING_SENT.search(error.reason):
                await self._let_go()
        except OSError as error:
            self._reason = f"nothing would have thawed them if pybackup had been killed: {error}"
        else:
            self._frozen = count_of(said)

    async def _end_instant(self) -> None:
        self._is_over = True
        if self._watchdog is None:
            return
        self._ended = time.monotonic()
        self._thawing = asyncio.create_task(self._thaw())
        # Where not even the freeze was answered, the thaw will not be soon; the backup need not wait.
        await asyncio.wait({self._thawing}, timeout=TELL_SECONDS if self._frozen else 0)

    # -- the thaw --

    async def _thaw(self) -> None:
        """Ask until libvirt says that it was done; what it is asked meanwhile waits there for the freeze to end."""
        silence = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell_of_silence)
        try:
            while True:
                self._note("to be thawed", HOLD_SECONDS + CALL_SECONDS)
                with contextlib.suppress(VirshError):
                    said = await self._virsh.ask(
                        "thaw the filesystems", "domfsthaw", "--domain", self._domain.uuid, seconds=CALL_SECONDS
                    )
                    self._thawed = count_of(said)
                    self._seconds = time.monotonic() - self._began
                    break
                await asyncio.sleep(ATTEMPT_SECONDS)
        finally:
            silence.cancel()
        if self._has_warned:
            self._tell(f"the filesystems of domain {self._domain.name} are thawed now")
        await self._let_go()

    def _note(self, text: str, within: float | None = None) -> None:
        if self._watchdog is not None:
            with contextlib.suppress(OSError):  # it was killed, or has begun to thaw: as we do
                self._watchdog.hand_over(text, within=within)

    def _tell_of_silence(self) -> None:
        self._has_warned = True
        self._tell(
            f"THE GUEST MAY HANG: the guest agent of domain {self._domain.name} does not say that it has thawed the"
            f" filesystems; pybackup goes on asking; if it asks in vain, {how_to_thaw(self._domain.name)}"
        )

    async def _let_go(self) -> None:
        """Nothing is frozen, or nothing of ours."""
        self._note(THAWED)
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            await watchdog.dismiss()

    async def close(self) -> None:
        """The backup has come to its end; where the thaw has not, the watchdog goes on with it. Never raises.

        A second time nothing happens.
        """
        if self._thawing is None:
            return
        left = self._ended + PATIENCE_SECONDS - time.monotonic()
        await end_within([self._thawing], max(0.0, left))
        if self._watchdog is not None:
            self._tell(f"a process of pybackup goes on asking domain {self._domain.name} to thaw for ten minutes")
            self._watchdog.leave()
            self._watchdog = None
