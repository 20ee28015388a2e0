"""Freezes a guest's filesystems for the instant of a backup, through the QEMU guest agent.

Frozen, a filesystem has written all that it had in memory, so it is whole in the archive, and not only recoverable as
after a power failure. Nothing here fails a backup: where the filesystems cannot be frozen, the instant is taken all the
same, and what came of it is told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from pybackup.core.system.watchdog import Watchdog

from .agent import ANSWER_SECONDS, AgentError, AgentRefusedError, GuestAgent
from .held_filesystems import HeldFilesystems, Wording
from .thaw import STATUS, Thaw
from .thaw_after_death import SECONDS, Frozen, how_to_thaw, thaw_after_death

FREEZE = "guest-fsfreeze-freeze"
FREEZE_SECONDS = 10.0
"""How long a guest may take to freeze, unless somebody says otherwise: it writes all that it has in memory."""
HOLD_SECONDS = 15.0
"""How long the instant may take before the watchdog thaws although we live: then we are suspended, or QEMU hangs."""


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """The path of an agent's socket, and how long a freeze may take (seconds)."""

    path: str
    freeze_seconds: float = FREEZE_SECONDS


class FilesystemFreeze(HeldFilesystems):
    """One freeze of one guest.

    Fixed: the agent's path, the time that a freeze may take, who is told of trouble. Changing: the connection, which is
    there until the thaw has worked.
    """

    def __init__(self, options: AgentOptions, tell: Callable[[str], None]) -> None:
        """``tell`` is called with sentences for the user, about a guest that may hang."""
        self._path, self._timeout = os.path.abspath(options.path), options.freeze_seconds
        wording = Wording(f"the guest agent at {self._path}", "the guest's filesystems", how_to_thaw(self._path))
        super().__init__(wording, tell)
        self._agent: GuestAgent | None = None

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

    async def _ask_to_thaw(self) -> int:
        assert self._agent is not None
        thaw = Thaw(self._agent, self._keep_watchdog_quiet)
        try:
            return await thaw.until_it_worked()
        finally:
            thaw.close()

    def _keep_watchdog_quiet(self) -> None:
        self._note("to be thawed", HOLD_SECONDS)

    async def _let_go(self) -> None:
        await super()._let_go()
        if self._agent is not None:
            self._agent.close()
