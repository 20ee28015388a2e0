"""In which state a guest's filesystems are in an archive, as its facts tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CRASH = {"consistency": "crash"}
"""The fact about an instant of which the guest knew nothing: its disks are as after a power failure."""


def consistency_of(facts: Mapping[str, Any]) -> dict[str, str | None]:
    """Of facts, which may hold anything: the consistency if they tell it, and why it is no better if they tell why."""
    told, reason = facts.get("consistency"), facts.get("consistency_reason")
    known = told in ("crash", "filesystem")
    return {
        "consistency": told if known else None,
        "consistency_reason": reason if told == "crash" and isinstance(reason, str) else None,
    }
