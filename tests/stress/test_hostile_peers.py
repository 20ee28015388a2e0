"""Hostile NBD clients and servers; see tests/hostile.

STRESS_HOSTILE is the number of games of each test. ``STRESS_SEED=N STRESS_HOSTILE=1`` plays one again, as far as a
game between processes can be the same.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hostile.games import Beside, play_against_clients, play_against_server

GAMES = int(os.environ.get("STRESS_HOSTILE") or 10)
SEED = int(os.environ.get("STRESS_SEED") or secrets.randbits(32))


def test_clients(capsys: pytest.CaptureFixture[str]) -> None:
    games = []
    for seed in range(SEED, SEED + GAMES):
        with capsys.disabled():
            print(f"\rhostile clients, STRESS_SEED={seed} ", end="", flush=True)
        # A short name, for sockets lie in the folder.
        with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
            games.append(play_against_clients(Path(folder), seed))
    with capsys.disabled():
        print(Beside(*map(sum, zip(*games, strict=True))))


def test_servers(capsys: pytest.CaptureFixture[str]) -> None:
    ends: Counter[str] = Counter()
    for seed in range(SEED, SEED + GAMES):
        with capsys.disabled():
            print(f"\rhostile servers, STRESS_SEED={seed} ", end="", flush=True)
        with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
            ends[play_against_server(Path(folder), seed)] += 1
    with capsys.disabled():
        print(dict(ends))
