"""Some random damages of every kind of archive; `make stress` plays as many as one likes."""

from __future__ import annotations

import pytest
from damages import COMMANDS, KINDS, Tally, check, play


def test_what_is_whole_is_right() -> None:
    for archive, guarded in KINDS.values():
        tally = Tally()
        check(archive, guarded, tally)
        expected = ("verify", "restore", "compare", "info", "merge")
        assert {f"{command}: right" for command in expected} <= set(tally.outcomes)


@pytest.mark.parametrize("seed", range(0, 150, 30))
def test_damage_is_told_or_does_no_harm(seed: int) -> None:
    tally = Tally()
    for number in range(seed, seed + 30):
        play(number, tally)
    assert sum(tally.outcomes.values()) == 30 * len(COMMANDS)
