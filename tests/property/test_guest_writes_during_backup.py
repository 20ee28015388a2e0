"""Guests work on disks while backups of them begin, are steered, fail and finish; see live_model.py for what must hold.

``make stress`` plays on for as long as you like.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_model import play

GAMES = 200


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_an_archive_holds_the_disk_as_it_was_at_its_instant(seed: int) -> None:
    play(seed)


@pytest.fixture(scope="module")
def outcomes() -> Counter[str]:
    """What came of the same games every time."""
    seen: Counter[str] = Counter()
    for seed in range(GAMES):
        seen.update(play(seed))
    return seen


@pytest.mark.parametrize("outcome", ["done", "cancelled", "failed", "too slow"])
def test_the_games_end_in_every_way(outcomes: Counter[str], outcome: str) -> None:
    assert outcomes[outcome]
