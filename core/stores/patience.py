"""How long a store that fails is asked again: exponential back-off, and an end to it.

One place retries. The libraries underneath are told not to, or their retries would multiply with ours.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pybackup.core.errors import RequestError

from .failures import is_transient, is_unreachable

T = TypeVar("T")

VARIABLE = "PYBACKUP_PATIENCE"
DEFAULT = 120.0
FIRST_CONTACT = 10.0
"""Seconds for which a server is looked for that was never reached: its address may just be wrong."""
FIRST_DELAY, LONGEST_DELAY = 0.25, 10.0
STALL_SHARE = 4
"""An attempt that makes no progress is given up after this part of the patience, so that there are some attempts."""


class Patience:
    """For how many seconds from its first failure on a request is repeated.

    Fixed: the seconds, the clock, the randomness (0 to 1), the sleep. Changing: whether the server was ever reached.
    """

    def __init__(
        self,
        seconds: float = DEFAULT,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.seconds = seconds
        self._clock, self._jitter, self._sleep = clock, jitter, sleep
        self._reached = False

    @classmethod
    def of_environment(cls) -> Patience:
        """As many seconds as PYBACKUP_PATIENCE says (RequestError where it is no number)."""
        text = os.environ.get(VARIABLE)
        if not text:
            return cls()
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise RequestError(f"{VARIABLE}={text} is not a number of seconds")
        return cls(seconds)

    @property
    def stall(self) -> float:
        """Seconds after which an attempt that makes no progress is given up."""
        return self.seconds / STALL_SHARE

    def at_most(self, seconds: float) -> Patience:
        """The same, but shorter where it is longer than so many seconds."""
        shorter = Patience(min(self.seconds, seconds), clock=self._clock, jitter=self._jitter, sleep=self._sleep)
        shorter._reached = self._reached
        return shorter

    async def retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ``attempt`` returns, repeated while its failure may pass; else its last failure."""
        began: float | None = None
        failures = 0
        while True:
            try:
                outcome = await attempt()
            except Exception as error:
                now = self._clock()
                began = now if began is None else began
                delay = self.delay(failures)
                if not is_transient(error) or now + delay - began > self._limit(error):
                    raise
            else:
                self._reached = True
                return outcome
            failures += 1
            await self._sleep(delay)

    def delay(self, failures: int) -> float:
        """Seconds to wait after that many earlier failures: twice as long each time, and never in step with others."""
        longest = min(FIRST_DELAY * 2.0 ** min(failures, 32), LONGEST_DELAY, self.seconds / 2)
        return longest * (0.5 + self._jitter() / 2)

    def _limit(self, error: Exception) -> float:
        if is_unreachable(error) and not self._reached:
            return min(self.seconds, FIRST_CONTACT)
        return self.seconds
