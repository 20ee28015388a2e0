"""In which state a guest's filesystems are in an archive, as its facts tell."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

CRASH = {"consistency": "crash"}
"""The fact about an instant of which the guest knew nothing: its disks are as after a power failure."""


class Stillness(Protocol):
    """What freezes a guest's filesystems for an instant, through whatever reaches the agent in it."""

    def held(self) -> AbstractAsyncContextManager[None]:
        """The body is the instant."""
        ...

    def facts(self) -> dict[str, Any]:
        """What is known of the instant, to be stored in an archive and reported."""
        ...

    async def close(self) -> None:
        """The backup has come to its end; where the guest is not thawed, others go on to ask. Never raises."""
        ...


def consistency_of(facts: Mapping[str, Any]) -> dict[str, str | None]:
    """Of facts, which may hold anything: the consistency if they tell it, and why it is no better if they tell why."""
    told, reason = facts.get("consistency"), facts.get("consistency_reason")
    known = told in ("crash", "filesystem")
    return {
        "consistency": told if known else None,
        "consistency_reason": reason if told == "crash" and isinstance(reason, str) else None,
    }
