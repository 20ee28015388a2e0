"""What is said of the state of a guest's filesystems in an archive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pybackup.cli.names import printable
from pybackup.core.guest.consistency import consistency_of

MOST_SAID = 400
"""Characters of a reason: it may come from an archive of anybody's, or from a guest."""


def in_words(facts: Mapping[str, Any]) -> str | None:
    """Of an archive's or a job's facts; None where they do not tell."""
    told = consistency_of(facts)
    if told["consistency"] is None:
        return None
    why = reason(facts)
    return f"{told['consistency']}-consistent" + (f": {why}" if why else "")


def reason(facts: Mapping[str, Any]) -> str | None:
    """Why it is not better, if that is told."""
    why = consistency_of(facts)["consistency_reason"]
    return None if why is None else printable(why[:MOST_SAID])
