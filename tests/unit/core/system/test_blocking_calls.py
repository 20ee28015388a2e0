from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pybackup.core.system.blocking_calls import BlockingCalls


def test_results_and_exceptions_come_back() -> None:
    async def test() -> None:
        calls = BlockingCalls()
        assert await calls.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await calls.run(divmod, 7, 0)
        await calls.close()
        assert calls.idle

    asyncio.run(test())


def test_a_call_that_has_not_started_is_dropped_when_cancelled() -> None:
    async def test() -> None:
        go_on, made = threading.Event(), []
        with ThreadPoolExecutor(1) as pool:
            calls = BlockingCalls(pool)
            first = asyncio.ensure_future(calls.run(go_on.wait, 30))
            second = asyncio.ensure_future(calls.run(made.append, 1))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            go_on.set()
            assert await first
            await calls.close()
        assert made == []

    asyncio.run(test())


def test_close_waits_for_a_call_whose_failure_nobody_awaits() -> None:
    async def test() -> None:
        started, go_on, ended = threading.Event(), threading.Event(), []

        def fail_late() -> None:
            started.set()
            go_on.wait(30)
            ended.append(1)
            raise OSError("late")

        calls = BlockingCalls()
        abandoned = asyncio.ensure_future(calls.run(fail_late))
        await asyncio.to_thread(started.wait)
        abandoned.cancel()
        closing = asyncio.ensure_future(calls.close())
        await asyncio.sleep(0)
        assert not closing.done()
        go_on.set()
        await closing
        assert ended == [1]
        with pytest.raises(asyncio.CancelledError):
            await abandoned

    asyncio.run(test())


def test_close_waits_for_what_was_only_started() -> None:
    async def test() -> None:
        go_on, made = threading.Event(), []
        calls = BlockingCalls()
        started = calls.start(lambda: made.append(go_on.wait(30)))
        assert not calls.idle
        closing = asyncio.ensure_future(calls.close())
        await asyncio.sleep(0)
        assert not closing.done()
        go_on.set()
        await closing
        assert made == [True] and started.done() and calls.idle

    asyncio.run(test())
