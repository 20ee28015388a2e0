"""Some random damages of every kind of archive; `make stress` plays as many as one likes."""

from __future__ import annotations

import pytest
from damages import KINDS, Tally, check, play


def test_what_is_whole_is_right() -> None:
    for archive, guarded in KINDS.values():
        tally = Tally()
        check(archive, guarded, tally)
        assert {"verify: right", "restore: right", "compare: right", "info: right"} <= set(tally.outcomes)


@pytest.mark.parametrize("seed", range(0, 150, 30))
def test_damage_is_told_or_does_no_harm(seed: int) -> None:
    tally = Tally()
    for number in range(seed, seed + 30):
        play(number, tally)
    assert sum(tally.outcomes.values()) == 30 * 6
