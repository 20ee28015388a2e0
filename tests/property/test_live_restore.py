"""Guests work on a disk while it is restored, and everything is cut off now and then; see live_restore_model.py.

``make stress`` plays on for as long as you like.
"""

from __future__ import annotations

from collections import Counter

import pytest
from live_restore_model import play

GAMES = 24


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """What came of the same games every time; each has checked itself."""
    seen: Counter[str] = Counter()
    for seed in range(GAMES):
        seen += play(seed, tmp_path_factory.mktemp("game"))
    return seen


@pytest.mark.parametrize("outcome", ["filled", "power failure", "kill", "flushed", "flush failed", "EIO"])
def test_no_flush_is_lost_however_the_games_go(outcomes: Counter[str], outcome: str) -> None:
    assert outcomes[outcome]


def test_every_game_ends_with_the_whole_disk(outcomes: Counter[str]) -> None:
    assert outcomes["filled"] >= GAMES
