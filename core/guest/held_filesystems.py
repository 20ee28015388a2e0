"""Filesystems of a guest that are frozen for an instant, whoever passes on what its agent is asked.

Who sent a freeze thaws, whatever the answer was, and whether or not there was one: a guest whose filesystems stay
frozen hangs. Where we are killed or suspended a watchdog does it.

It is called filesystem-consistent only what certainly is: the agent said that it froze, and when it thawed, after the
instant, that all of that was still frozen. Others can thaw, and Windows does it by itself after ten seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from pybackup.core.errors import SourceError
from pybackup.core.system.watchdog import Watchdog
from pybackup.core.tasks import end_within, uninterrupted

from .consistency import CRASH
from .thaw_after_death import THAWED

TELL_SECONDS = 5.0
"""After so long without an answer to the thaw, the user is told."""
PATIENCE_SECONDS = 10.0
"""A backup that has come to its end waits so long for the thaw, and leaves it to the watchdog then."""


class Wording(NamedTuple):
    """How the user is told: whose agent it is, what is thawed, and what can be done by hand (a clause)."""

    agent: str
    filesystems: str
    how_to_thaw: str


class HeldFilesystems(ABC):
    """One freeze of one guest.

    Fixed: the wording, who is told of trouble, whether there is a backup without. Changing: the watchdog, which is
    there until the thaw has worked; what the agent said; ``_reason``, why nothing was frozen.
    """

    def __init__(self, wording: Wording, tell: Callable[[str], None], *, is_required: bool = False) -> None:
        """``tell`` is called with sentences for the user, about a guest that may hang."""
        self._wording, self._tell, self._is_required = wording, tell, is_required
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
        who = self._wording.agent
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
            self._check_frozen()
            yield
        finally:
            await uninterrupted(self._end_instant())

    @abstractmethod
    async def _prepare(self) -> None:
        """Start the watchdog; without it nothing is frozen."""

    @abstractmethod
    async def _freeze(self) -> None:
        """Tell the watchdog, and freeze: ``_frozen`` filesystems, or the ``_reason`` why there are none."""

    def _check_frozen(self) -> None:
        if self._is_required and not self._frozen:
            why = self._reason or self._doubt()
            raise SourceError(f"{self._wording.filesystems} could not be frozen: {why}")

    @abstractmethod
    async def _ask_to_thaw(self) -> int | None:
        """Ask until it was done; how many were still frozen, None where there is nobody left to tell."""

    async def _end_instant(self) -> None:
        self._is_over = True
        if self._watchdog is None:
            await self._let_go()
            return
        self._ended = time.monotonic()
        self._thawing = asyncio.create_task(self._thaw())
        # Where not even the freeze was answered, the thaw will not be soon; the backup need not wait.
        await asyncio.wait({self._thawing}, timeout=TELL_SECONDS if self._frozen else 0)

    # -- the thaw --

    async def _thaw(self) -> None:
        silence = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell_of_silence)
        try:
            self._thawed = await self._ask_to_thaw()
            self._seconds = time.monotonic() - self._began
        finally:
            silence.cancel()
        if self._has_warned and self._thawed is not None:
            self._tell(f"{self._wording.filesystems} are thawed now")
        await self._let_go()

    def _note(self, text: str, within: float | None = None) -> None:
        if self._watchdog is not None:
            with contextlib.suppress(OSError):  # it was killed, or has begun to thaw: as we do
                self._watchdog.hand_over(text, within=within)

    def _tell_of_silence(self) -> None:
        self._has_warned = True
        self._tell(
            f"THE GUEST MAY HANG: {self._wording.agent} does not say that it has thawed the filesystems; pybackup goes"
            f" on asking; if it asks in vain, {self._wording.how_to_thaw}"
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
            self._tell(f"a process of pybackup goes on asking {self._wording.agent} for ten minutes")
            self._watchdog.leave()
            self._watchdog = None
