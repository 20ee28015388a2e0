"""What becomes of tasks when whoever waits for them is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from pybackup.core.tasks import (
    beside,
    end,
    end_within,
    ended,
    first_of,
    see_through,
    uninterrupted,
    wait,
    wait_until_at_most,
)


class Work:
    """Waits until it is let go; counts how often it was cancelled, and obeys the first time only if it is asked to."""

    def __init__(self, *, obeys: bool = True) -> None:
        self.go, self.begun = asyncio.Event(), asyncio.Event()
        self.cancelled = 0
        self._obeys = obeys

    async def run(self, result: object = "done") -> object:
        self.begun.set()
        while True:
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                if self._obeys:
                    raise
            else:
                if isinstance(result, Exception):
                    raise result
                return result


async def _cancel_once_waiting(task: asyncio.Task[Any], work: Work) -> None:
    await work.begun.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)


def test_what_is_ended_has_ended() -> None:
    async def scenario() -> None:
        works = [Work(), Work()]
        tasks = [asyncio.create_task(work.run()) for work in works]
        await asyncio.gather(*(work.begun.wait() for work in works))
        await end(iter(tasks))
        assert all(task.cancelled() for task in tasks)
        await end([])

    asyncio.run(scenario())


def test_failures_of_what_is_ended_are_nobodys(recwarn: pytest.WarningsRecorder) -> None:
    async def fail() -> None:
        raise ValueError("nobody wants to know")

    async def scenario() -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        tasks = [asyncio.create_task(fail()) for _ in range(3)]
        await ended(tasks)
        del tasks
        return told

    assert asyncio.run(scenario()) == []


def test_time_is_given_before_the_end() -> None:
    async def scenario() -> None:
        quick, slow = Work(), Work()
        tasks = [asyncio.create_task(quick.run()), asyncio.create_task(slow.run())]
        quick.go.set()
        assert await wait(tasks[:1]) == set()
        assert await wait(tasks, 0.01) == {tasks[1]}
        assert await end_within(tasks[:1], 0.0)
        assert not await end_within(tasks, 0.01)
        assert tasks[0].result() == "done"
        assert tasks[1].cancelled()
        assert await end_within([], 0.0)

    asyncio.run(scenario())


def test_what_works_beside_ends_with_the_body_also_when_that_fails() -> None:
    async def scenario() -> None:
        work = Work()
        with pytest.raises(ValueError, match="of the body"):
            async with beside(work.run()) as task:
                await work.begun.wait()
                raise ValueError("of the body")
        assert task.cancelled()
        assert work.cancelled == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("failure", [None, ValueError("first")])
def test_the_first_that_ends_is_the_one_that_counts(failure: Exception | None) -> None:
    async def scenario() -> object:
        works = [Work(), Work(), Work()]
        works[1].go.set()
        try:
            return await first_of([works[0].run(), works[1].run(failure or "first"), works[2].run()])
        finally:
            assert [work.cancelled for work in works] == [1, 0, 1]

    if failure is None:
        assert asyncio.run(scenario()) == "first"
    else:
        with pytest.raises(ValueError, match="first"):
            asyncio.run(scenario())


def test_a_task_is_seen_through_however_often_we_are_cancelled() -> None:
    async def scenario() -> int:
        work, told = Work(), []
        inner = asyncio.create_task(work.run())
        outer = asyncio.create_task(see_through(inner, lambda: told.append(1)))
        for _ in range(3):
            await _cancel_once_waiting(outer, work)
        work.go.set()
        await outer
        assert (inner.result(), work.cancelled) == ("done", 0)
        return len(told)

    assert asyncio.run(scenario()) == 3


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("failure", [None, ValueError("of the work")])
def test_work_that_is_not_interrupted(cancelled: bool, failure: Exception | None) -> None:
    async def scenario() -> object:
        work = Work()
        task: asyncio.Task[object] = asyncio.create_task(uninterrupted(work.run(failure or "done")))
        await work.begun.wait()
        if cancelled:
            await _cancel_once_waiting(task, work)
        assert not task.done()
        work.go.set()
        return await _outcome(task)

    expected = repr(failure) if failure is not None else "cancelled" if cancelled else "done"
    assert asyncio.run(scenario()) == expected


async def _outcome(work: asyncio.Task[object]) -> object:
    await wait([work])
    if work.cancelled():
        return "cancelled"
    return repr(work.exception()) if work.exception() is not None else work.result()


def test_all_that_failed_together_are_looked_at() -> None:
    async def fail(number: int) -> None:
        raise ValueError(f"failure {number}")

    async def scenario() -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        failing: list[Coroutine[Any, Any, None]] = [fail(number) for number in range(3)]
        tasks = {asyncio.create_task(one) for one in failing}
        with pytest.raises(ValueError, match="failure"):
            await wait_until_at_most(tasks, 0)
        assert not tasks
        return told

    assert asyncio.run(scenario()) == []
