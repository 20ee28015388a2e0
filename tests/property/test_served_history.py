"""Guests work on served disks while histories of them are made; see served_model.py for what must hold.

``make stress`` plays on for as long as you like.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served_model import play

GAMES = 8


@given(st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_every_archive_with_its_ancestors_holds_its_instant(seed: int) -> None:
    play(seed)


@pytest.fixture(scope="module", name="outcomes")
def _outcomes() -> Counter[str]:
    """What came of the same games every time."""
    seen: Counter[str] = Counter()
    for seed in range(GAMES):
        seen.update(play(seed))
    return seen


@pytest.mark.parametrize("outcome", ["done", "failed", "server", "digest", "known", "lost", "behind the back"])
def test_the_games_end_in_every_way(outcomes: Counter[str], outcome: str) -> None:
    assert outcomes[outcome]
