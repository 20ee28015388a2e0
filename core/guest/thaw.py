"""Thaws a guest's filesystems, and asks again until the agent says that it has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from .agent import AgentError, AgentLostError, AgentRefusedError, GuestAgent, NoAnswerError
from .thaw_after_death import ATTEMPT_SECONDS, THAW

STATUS = "guest-fsfreeze-status"


class Thaw:
    """Fixed: who is told of each attempt. Changing: the connection, and the numbers of what was asked in it."""

    def __init__(self, agent: GuestAgent, attempt: Callable[[], None]) -> None:
        self._agent, self._attempt = agent, attempt
        self._asked: set[int] = set()

    async def until_it_worked(self) -> int:
        """Return how many filesystems were thawed. An agent that writes what was frozen answers when it has done so.

        Each request is in the channel, and will be done, even when nobody waits for its answer any more.
        """
        while True:
            self._attempt()
            try:
                return await self._ask()
            except NoAnswerError:
                continue
            except AgentRefusedError:
                if await self._is_thawed():
                    return await self._come_meanwhile()
            except AgentLostError:
                await self._reconnect()
            await asyncio.sleep(ATTEMPT_SECONDS)

    async def _ask(self) -> int:
        self._asked.add(await self._agent.send(THAW, ATTEMPT_SECONDS))
        count = await self._agent.answer(self._asked, THAW, ATTEMPT_SECONDS)
        return count if type(count) is int else 0

    async def _is_thawed(self) -> bool:
        """Windows thaws by itself after ten seconds, and answers a thaw with an error then."""
        try:
            return bool(await self._agent.ask(STATUS, ATTEMPT_SECONDS) == "thawed")
        except AgentError:
            return False

    async def _come_meanwhile(self) -> int:
        """What another request, whose answer was late, has thawed: it came before the answer about the state."""
        while True:
            try:
                count = await self._agent.answer(self._asked, THAW, 0)
                return count if type(count) is int else 0
            except AgentRefusedError:
                continue
            except AgentError:
                return 0

    async def _reconnect(self) -> None:
        self._agent.close()
        with contextlib.suppress(AgentError):
            self._agent, self._asked = await GuestAgent.connect(self._agent.path, ATTEMPT_SECONDS), set()

    def close(self) -> None:
        """Leave the connection."""
        self._agent.close()
