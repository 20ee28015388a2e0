"""A job: something long that can be watched, slowed, paused and cancelled.

The states are those of QEMU's jobs that a user can see: created, running, paused, concluded. The first error wins:
whatever fails later, also because of the first failure, is not reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from pybackup.core.errors import CancelledError, RequestError, TargetFullError
from pybackup.core.tasks import see_through
from pybackup.core.trace import Trace

from .ratelimit import RateLimit


class State(StrEnum):
    """What a job is doing."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    CONCLUDED = "concluded"


@dataclass(slots=True)
class DriveProgress:
    """How far one drive is. All in bytes; ``done`` includes zeros, ``read`` does not include holes.

    ``zero``: in blocks that an archive does not store, be they holes or written zeros. ``unchanged``: as the parent of
    a delta has them, zeros or not, which ``zero`` does not count. ``to_read``: how much there is to read, about, where
    that is known beforehand.
    """

    name: str
    size: int
    done: int = 0
    zero: int = 0
    read: int = 0
    to_read: int | None = None
    unchanged: int = 0

    @property
    def effort(self) -> tuple[int, int]:
        """(done, whole) of what takes time, in bytes: a hole takes none, but of a compressed image more is read."""
        if self.to_read is None or self.read > self.to_read:
            return self.done, self.size
        return self.to_read if self.done >= self.size else self.read, self.to_read


@dataclass(slots=True)
class Progress:
    """How far a job is. ``written`` is in bytes of the output, ``started`` and ``finished`` by the job's clock.

    ``consumed``: (done, whole) bytes of what is read from beginning to end, where that is an archive of known size.
    """

    drives: list[DriveProgress] = field(default_factory=list)
    written: int = 0
    started: float = 0.0
    finished: float | None = None
    consumed: tuple[int, int] | None = None

    @property
    def effort(self) -> tuple[int, int]:
        """(done, whole) of what takes time, in bytes."""
        if self.consumed is not None:
            return self.consumed
        efforts = [drive.effort for drive in self.drives]
        return sum(done for done, _ in efforts), sum(whole for _, whole in efforts)

    @property
    def size(self) -> int:
        """Bytes of all drives."""
        return sum(drive.size for drive in self.drives)

    @property
    def done(self) -> int:
        """Bytes done of all drives."""
        return sum(drive.done for drive in self.drives)

    @property
    def zero(self) -> int:
        """Zero bytes found on all drives."""
        return sum(drive.zero for drive in self.drives)

    @property
    def unchanged(self) -> int:
        """Bytes that a parent has."""
        return sum(drive.unchanged for drive in self.drives)

    @property
    def stored(self) -> int:
        """Bytes done that were not zero, nor as the parent of a delta has them."""
        return self.done - self.zero - self.unchanged


def with_estimate(error: TargetFullError, progress: Progress) -> TargetFullError:
    """The error with how many bytes the archive needs, judged by what has been written for what is done.

    What has been written may still have been on its way, so it does not say how much room there was.
    """
    if not progress.stored or not progress.written:
        return error
    whole = max(progress.written, progress.size * progress.written // max(1, progress.done))
    return TargetFullError(f"{error}; the archive needs about {whole:,} bytes")


class Job(ABC):
    """Base of every job.

    Fixed: the clock (seconds), the trace. Changing, in the event loop only: state, error, speed, progress; and, once
    what cannot be undone is done, ``late_error``, what failed after it.
    """

    def __init__(
        self, *, speed: int = 0, clock: Callable[[], float] = time.monotonic, trace: Trace | None = None
    ) -> None:
        self.limit = RateLimit(speed, clock)
        self.progress = Progress()
        self.trace = trace or Trace()
        self.error: BaseException | None = None
        self.late_error: BaseException | None = None
        self._is_decided = False
        self._clock = clock
        self._state = State.CREATED
        self._task: asyncio.Task[None] | None = None
        self._has_begun = False
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._speed_changed = asyncio.Event()

    @property
    def is_decided(self) -> bool:
        """Whether what cannot be undone is done: from then on nothing makes the job fail."""
        return self._is_decided

    @property
    def state(self) -> State:
        """What the job is doing."""
        return self._state

    async def run(self) -> None:
        """Do the work; return when all of it is done, else raise the first error."""
        if self._state is not State.CREATED:
            raise RequestError(f"a job that is {self._state} cannot be run")
        if self.error is None:
            self._enter(State.RUNNING)
            self.progress.started = self._clock()
            self._task = asyncio.create_task(self._begin())
            await self._outcome(self._task)
        if not self._has_begun:
            await self._abandon()
        self.progress.finished = self._clock()
        self._enter(State.CONCLUDED)
        if self.error is not None:
            raise self.error

    async def _begin(self) -> None:
        self._has_begun = True
        await self._work()

    async def _outcome(self, task: asyncio.Task[None]) -> None:
        await see_through(task, lambda: self.fail(CancelledError()))
        if self._is_decided:
            self.late_error = None if task.cancelled() else task.exception()
        elif task.cancelled():
            self._note(CancelledError())
        elif (error := task.exception()) is not None:
            self._note(error)
        elif isinstance(self.error, CancelledError):
            # Everything was done already when the cancelling came.
            self.error = None

    async def _decide(self, last_step: Callable[[], Awaitable[None]]) -> None:
        """Do the last step, such as to give an archive its name, and from then on nothing makes the job fail.

        What went wrong before prevents it, and nothing after it is undone: a signal that comes then is too late. The
        step itself, when it is cancelled, tells whether it was done: it raises CancelledError only if not.
        """
        if self.error is not None:
            raise self.error
        await last_step()
        self._is_decided, self.error = True, None
        self.trace("job.decided")

    @property
    def elapsed(self) -> float:
        """Seconds since the job began, or that it took."""
        if not self._has_begun:
            return 0.0
        finished = self.progress.finished
        return (self._clock() if finished is None else finished) - self.progress.started

    @abstractmethod
    async def _work(self) -> None:
        """The work itself; cleans up after itself however it ends."""

    async def _abandon(self) -> None:  # noqa: B027 - most jobs were handed nothing
        """Give back what the job was handed, where it was cancelled before _work() began."""

    def _enter(self, state: State) -> None:
        self._state = state
        self.trace("job.state", state=str(state))

    # -- steering --

    def pause(self) -> None:
        """Stop copying in the background until resume(). Guests' copies go on."""
        if self._state is State.RUNNING:
            self._resumed.clear()
            self._enter(State.PAUSED)

    def resume(self) -> None:
        """Go on after pause()."""
        if self._state is State.PAUSED:
            self._resumed.set()
            self._enter(State.RUNNING)

    def cancel(self, reason: CancelledError | None = None) -> None:
        """End the job as soon as can be; run() raises ``reason``."""
        self.fail(reason or CancelledError())

    def fail(self, error: BaseException) -> None:
        """End the job because of ``error``, unless an earlier error ended it already."""
        if self._is_decided or self._state is State.CONCLUDED or (self._task is not None and self._task.done()):
            return
        if self._note(error) and self._task is not None:
            self._task.cancel()

    def _note(self, error: BaseException) -> bool:
        """Whether this is the first error, which is then the one to report."""
        if self.error is not None:
            return False
        self.error = error
        self.trace("job.error", error=str(error))
        return True

    def set_speed(self, speed: int) -> None:
        """Change the limit, in bytes a second; 0 means none. Takes effect at once."""
        self.limit.set_speed(speed)
        self.trace("job.speed", speed=speed)
        self._speed_changed.set()

    async def _pace(self, size: int) -> None:
        """Wait while paused, or while the limit says so; then charge ``size`` bytes."""
        await self._until_it_may_go_on()
        self.limit.charge(size)

    async def _until_it_may_go_on(self) -> None:
        """Return at a moment when the job is not paused, and the limit allows to go on."""
        await self._unpaused()
        while (delay := self.limit.delay()) > 0:
            await self._sleep(delay)
            await self._unpaused()

    async def _unpaused(self) -> None:
        """Return at a moment when the job is not paused: it may be paused again before a waiter wakes."""
        while not self._resumed.is_set():
            await self._resumed.wait()

    async def _sleep(self, delay: float) -> None:
        """Sleep for ``delay`` seconds, or until the speed changes."""
        self._speed_changed.clear()
        # Not wait_for(): Python 3.11's loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._speed_changed.wait()
