"""The model of tests/live_restore_model.py, for STRESS_RESTORES games; 0: until somebody stops it.

``make stress`` prints each seed's number as it goes; ``STRESS_SEED=N STRESS_RESTORES=1 make stress`` repeats one game.
"""

from __future__ import annotations

import itertools
import os
import secrets
from pathlib import Path

import pytest
from live_restore_model import play


def test_no_flush_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = int(os.environ.get("STRESS_SEED") or secrets.randbits(32))
    games = int(os.environ.get("STRESS_RESTORES", "300"))
    for number in range(games) if games else itertools.count():
        with capsys.disabled():
            print(f"\rgame {number + 1}, STRESS_SEED={begin + number} ", end="", flush=True)
        assert play(begin + number, tmp_path)["filled"]
