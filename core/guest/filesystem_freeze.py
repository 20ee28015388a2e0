"""Freezes a guest's filesystems for the instant of a backup, through the QEMU guest agent.

Frozen, a filesystem has written all that it had in memory, so it is whole in the archive, and not only recoverable as
after a power failure. Nothing here fails a backup: where the filesystems cannot be frozen, the instant is taken all the
same, and what came of it is told. But whoever sent a freeze thaws, whatever the answer was, and whether or not there
was one: a guest whose filesystems stay frozen hangs. Where we are killed or suspended a watchdog does it.

It is called filesystem-consistent only what certainly is: the agent said that it froze, and when it thawed, after the
instant, that all of that was still frozen. Others can thaw, and Windows does it by itself after ten seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from pybackup.core.system.watchdog import Watchdog
from pybackup.core.tasks import end_within, uninterrupted

from .agent import ANSWER_SECONDS, AgentError, AgentRefusedError, GuestAgent
from .consistency import CRASH
from .thaw import STATUS, Thaw
from .thaw_after_death import SECONDS, THAWED, Frozen, how_to_thaw, thaw_after_death

FREEZE = "guest-fsfreeze-freeze"
FREEZE_SECONDS = 10.0
"""How long a guest may take to freeze, unless somebody says otherwise: it writes all that it has in memory."""
HOLD_SECONDS = 15.0
"""How long the instant may take before the watchdog thaws although we live: then we are suspended, or QEMU hangs."""
TELL_SECONDS = 5.0
"""After so long without an answer to the thaw, the user is told."""
PATIENCE_SECONDS = 10.0
"""A backup that has come to its end waits so long for the thaw, and leaves it to the watchdog then."""


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """The path of an agent's socket, and how long a freeze may take (seconds)."""

    path: str
    freeze_seconds: float = FREEZE_SECONDS


class FilesystemFreeze:
    """One freeze of one guest.

    Fixed: the agent's path, the time that a freeze may take, who is told of trouble. Changing: the connection and the
    watchdog, which are there until the thaw has worked; what the agent said; ``reason``, why nothing was frozen.
    """

    def __init__(self, options: AgentOptions, tell: Callable[[str], None]) -> None:
        """``tell`` is called with sentences for the user, about a guest that may hang."""
        self._path, self._timeout, self._tell = os.path.abspath(options.path), options.freeze_seconds, tell
        self._agent: GuestAgent | None = None
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
        if not self._frozen:
            return f"the guest agent at {self._path} froze no filesystem"
        if self._thawed is None:
            return f"the guest agent at {self._path} did not say whether they were frozen until after the instant"
        if self._thawed < self._frozen:
            return f"of {self._frozen} filesystems only {self._thawed} were still frozen after the instant"
        return None

    # -- the instant --

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The body is the instant: let it take no time that can be spared, for the guest cannot write meanwhile."""
        try:
            await self._prepare()
            await self._freeze()
            yield
        finally:
            await uninterrupted(self._end_instant())

    async def _prepare(self) -> None:
        """Connect, and make sure that an agent listens: what is sent to none would be done when it starts one day."""
        try:
            seconds = min(ANSWER_SECONDS, self._timeout)
            agent = self._agent = await GuestAgent.connect(self._path, seconds)
            if await agent.ask(STATUS, seconds) != "thawed":
                raise AgentError("the guest's filesystems were frozen already, by somebody else")
            watchdog = Watchdog(thaw_after_death, seconds=SECONDS)
            await watchdog.ready()
            self._watchdog = watchdog
        except AgentError as error:
            self._reason = str(error)
        except OSError as error:
            self._reason = f"nothing would have thawed them if pybackup had been killed: {error}"

    async def _freeze(self) -> None:
        agent, watchdog = self._agent, self._watchdog
        if agent is None or watchdog is None:
            return
        try:
            note = str(Frozen(self._path, os.getpid()))
            watchdog.hand_over(note, [agent.fileno()], within=self._timeout + HOLD_SECONDS)
            count = await agent.ask(FREEZE, self._timeout)
            watchdog.hand_over("frozen", within=HOLD_SECONDS)
        except AgentRefusedError as error:
            self._reason = str(error)
            if not await self._is_to_be_thawed(agent, error):
                await self._let_go()
        except AgentError as error:
            self._reason = str(error)
        except OSError as error:
            self._reason = f"nothing would have thawed them if pybackup had been killed: {error}"
        else:
            self._frozen = count if type(count) is int and count > 0 else 0
        self._began = time.monotonic()

    @staticmethod
    async def _is_to_be_thawed(agent: GuestAgent, error: AgentRefusedError) -> bool:
        """Whether a freeze that was refused may have frozen something, and not somebody else a moment ago."""
        try:
            return bool(await agent.ask(STATUS) != "thawed") and "disabled" not in error.reason
        except AgentError:
            return True

    async def _end_instant(self) -> None:
        self._is_over = True
        if self._watchdog is None or self._agent is None:
            await self._let_go()
            return
        self._ended = time.monotonic()
        self._thawing = asyncio.create_task(self._thaw(self._agent))
        # Where not even the freeze was answered, the thaw will not be soon; the backup need not wait.
        await asyncio.wait({self._thawing}, timeout=TELL_SECONDS if self._frozen else 0)

    # -- the thaw --

    async def _thaw(self, agent: GuestAgent) -> None:
        silence = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell_of_silence)
        thaw = Thaw(agent, self._keep_watchdog_quiet)
        try:
            self._thawed = await thaw.until_it_worked()
            self._seconds = time.monotonic() - self._began
        finally:
            silence.cancel()
            thaw.close()
        if self._has_warned:
            self._tell("the guest's filesystems are thawed now")
        await self._let_go()

    def _keep_watchdog_quiet(self) -> None:
        self._note("to be thawed", HOLD_SECONDS)

    def _note(self, text: str, within: float | None = None) -> None:
        if self._watchdog is not None:
            with contextlib.suppress(OSError):  # it was killed, or has begun to thaw: as we do
                self._watchdog.hand_over(text, within=within)

    def _tell_of_silence(self) -> None:
        self._has_warned = True
        self._tell(
            f"THE GUEST MAY HANG: the guest agent at {self._path} does not say that it has thawed the filesystems;"
            f" pybackup goes on asking; if it asks in vain, {how_to_thaw(self._path)}"
        )

    async def _let_go(self) -> None:
        """Nothing is frozen, or nothing of ours."""
        self._note(THAWED)
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            await watchdog.dismiss()
        if self._agent is not None:
            self._agent.close()

    async def close(self) -> None:
        """The backup has come to its end; where the thaw has not, the watchdog goes on with it. Never raises.

        A second time nothing happens.
        """
        if self._thawing is None:
            return
        left = self._ended + PATIENCE_SECONDS - time.monotonic()
        await end_within([self._thawing], max(0.0, left))
        if self._watchdog is not None:
            self._tell(f"a process of pybackup goes on asking the guest agent at {self._path} for ten minutes")
            self._watchdog.leave()
            self._watchdog = None
