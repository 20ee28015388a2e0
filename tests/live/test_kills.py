"""A few kills at the end of a run; `make stress` plays thousands, of every command."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from conftest import need
from kills.play import named, play


@pytest.mark.parametrize("situation", ["run-force", "restore-folder"])
def test_a_kill_at_the_end_of_it(situation: str) -> None:
    need("strace")
    games = named(f"{situation}@fsync:1,{situation}@fsync:2,{situation}@exit_group:1")
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        score = play(Path(folder), games, workers=1, seed=1)
    assert not score.failures, score
    assert score.killed[situation] == 3
