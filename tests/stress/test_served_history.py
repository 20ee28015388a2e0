"""The model of tests/served_model.py, for STRESS_GAMES games; 0: until somebody stops it.

``make stress`` prints each seed's number as it goes; ``STRESS_SEED=N STRESS_GAMES=1 make stress`` repeats one game.
"""

from __future__ import annotations

import itertools
import os
import secrets

import pytest
from served_model import play


def test_guests_and_histories(capsys: pytest.CaptureFixture[str]) -> None:
    begin = int(os.environ.get("STRESS_SEED") or secrets.randbits(32))
    games = int(os.environ.get("STRESS_GAMES", "100"))
    for number in range(games) if games else itertools.count():
        with capsys.disabled():
            print(f"\rhistory {number + 1}, STRESS_SEED={begin + number} ", end="", flush=True)
        play(begin + number, backups=20)
