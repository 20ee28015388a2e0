from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from virtual_time import run

from pybackup.core.errors import CancelledError, RequestError, SourceError, TargetError
from pybackup.core.jobs.job import Job, State
from pybackup.core.trace import Trace


class Counting(Job):
    """Copies ``pieces`` of 1 MB. ``at`` is called before each, with its number."""

    def __init__(self, pieces: int = 10, at: Callable[[int], Any] = lambda _: None, **options: Any) -> None:
        super().__init__(clock=lambda: asyncio.get_running_loop().time(), **options)
        self.pieces, self.at = pieces, at
        self.done = 0
        self.cleaned = self.abandoned = False

    async def _work(self) -> None:
        try:
            for number in range(self.pieces):
                self.at(number)
                await self._pace(1_000_000)
                self.done += 1
                await asyncio.sleep(0.001)
        finally:
            await asyncio.sleep(0)
            self.cleaned = True

    async def _abandon(self) -> None:
        self.abandoned = True


def test_the_states_of_a_job() -> None:
    states: list[object] = []

    async def main() -> None:
        job = Counting(trace=Trace(["job.state"], lambda _, values: states.append(values["state"])))
        assert job.state is State.CREATED and job.elapsed == 0
        job.pause()
        job.resume()
        assert job.state is State.CREATED
        task = asyncio.create_task(job.run())
        await asyncio.sleep(0.0055)
        job.pause()
        job.pause()
        await asyncio.sleep(100)
        assert job.state is State.PAUSED and job.done == 6
        job.resume()
        await task
        assert job.elapsed == pytest.approx(100, abs=1)
        job.pause()
        job.cancel()
        assert job.state is State.CONCLUDED and job.error is None

    run(main())
    assert states == ["running", "paused", "running", "concluded"]


def test_a_pause_that_follows_a_resume_at_once_is_a_pause() -> None:
    async def main() -> None:
        job = Counting()
        task = asyncio.create_task(job.run())
        await asyncio.sleep(0.0035)
        job.pause()
        await asyncio.sleep(1)
        done = job.done
        job.resume()
        job.pause()
        await asyncio.sleep(1)
        assert job.done == done
        job.resume()
        await task

    run(main())


def test_cancelled_before_it_runs() -> None:
    async def main() -> None:
        job = Counting()
        job.cancel()
        with pytest.raises(CancelledError):
            await job.run()
        assert job.state is State.CONCLUDED and job.abandoned and not job.cleaned

    run(main())


def test_cancelled_in_the_turn_in_which_it_starts() -> None:
    async def main() -> None:
        job = Counting()
        task = asyncio.create_task(job.run())
        asyncio.get_running_loop().call_soon(job.cancel)
        with pytest.raises(CancelledError):
            await task
        assert job.abandoned and not job.cleaned

    run(main())


def test_cancelled_while_paused() -> None:
    async def main() -> None:
        job = Counting()
        task = asyncio.create_task(job.run())
        await asyncio.sleep(0.0035)
        job.pause()
        await asyncio.sleep(1)
        reason = CancelledError("enough", 15)
        job.cancel(reason)
        job.cancel(CancelledError("again"))
        with pytest.raises(CancelledError) as caught:
            await task
        assert caught.value is reason and reason.exit_code == 143
        assert job.cleaned and not job.abandoned and job.state is State.CONCLUDED

    run(main())


def test_a_cancelled_caller_cancels_the_job_and_waits_for_its_end() -> None:
    async def main() -> None:
        job = Counting()
        task = asyncio.create_task(job.run())
        await asyncio.sleep(0.0035)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(CancelledError):
            await task
        assert job.cleaned

    run(main())


def test_the_first_error_wins() -> None:
    async def main() -> None:
        first = SourceError("first")
        job = Counting(at=lambda number: job.fail(first) if number == 3 else None)
        with pytest.raises(SourceError) as caught:
            await job.run()
        job.fail(TargetError("later"))
        assert caught.value is first is job.error

        def fail(number: int) -> None:
            raise first

        job = Counting(at=fail)
        with pytest.raises(SourceError):
            await job.run()
        assert job.error is first

    run(main())


def test_an_error_that_comes_when_all_is_done_is_too_late() -> None:
    async def main() -> None:
        job = Counting(pieces=1)
        task = asyncio.create_task(job.run())
        await asyncio.sleep(0.001)
        while not job.cleaned:  # noqa: ASYNC110 - the very turn of the loop matters
            await asyncio.sleep(0)
        job.cancel()
        await task
        assert job.error is None

    run(main())


def test_a_job_runs_once() -> None:
    async def main() -> None:
        job = Counting()
        task = asyncio.create_task(job.run())
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="running cannot be run"):
            await job.run()
        await task
        with pytest.raises(RequestError, match="concluded cannot be run"):
            await job.run()

    run(main())


def test_a_cancel_and_a_new_speed_in_one_turn() -> None:
    """asyncio.wait_for() of Python 3.11 forgets a cancellation that comes together with what it waits for."""

    async def main() -> None:
        job = Counting(pieces=3, speed=1000)
        task = asyncio.create_task(job.run())
        await asyncio.sleep(1)
        job.set_speed(0)
        job.cancel()
        with pytest.raises(CancelledError):
            await task
        assert job.done == 1

    run(main())


def test_a_new_speed_takes_effect_at_once() -> None:
    async def main() -> None:
        job = Counting(pieces=10, speed=1)
        task = asyncio.create_task(job.run())
        await asyncio.sleep(5)
        assert job.done == 1
        job.set_speed(10_000_000)
        await task
        assert 5.5 < job.elapsed < 6.5
        with pytest.raises(RequestError):
            job.set_speed(-1)

    run(main())
