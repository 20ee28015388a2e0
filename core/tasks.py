"""Tasks that run ahead of whoever made them."""

from __future__ import annotations

import asyncio


async def wait_until_at_most(tasks: set[asyncio.Task[None]], keep: int) -> None:
    """Return when at most ``keep`` of the tasks are left, and take those that have ended out; raise the first failure.

    All that have ended are looked at, for several may have failed together, and asyncio would tell of the others.
    """
    while len(tasks) > keep:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks -= done
        for failure in [task.exception() for task in done]:
            if failure is not None:
                raise failure
