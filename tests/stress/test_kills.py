"""kill -9 of every command on every kind of source and target, and what must hold afterwards; see tests/kills.

STRESS_KILLS is the number of games of each test, STRESS_WORKERS how many are played at once. STRESS_ONLY names
situations, separated by commas. A failure names its game: ``STRESS_KILL=run@unlink:1 make stress`` plays it again.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kills.places import Bucket
from kills.play import Score, instants, named, play, playable, system_calls

KILLS = int(os.environ.get("STRESS_KILLS") or 60)
WORKERS = int(os.environ.get("STRESS_WORKERS") or 2)
SEED = int(os.environ.get("STRESS_SEED") or secrets.randbits(32))
REPLAY = os.environ.get("STRESS_KILL")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's: sockets lie in it, whose names must be short."""
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
    Bucket.close()


def names() -> list[str]:
    only = os.environ.get("STRESS_ONLY")
    return only.split(",") if only else playable()


def tell(capsys: pytest.CaptureFixture[str], score: Score) -> None:
    with capsys.disabled():
        print(f"\nSTRESS_SEED={SEED}\n{score}")
    assert not score.failures


@pytest.mark.skipif(REPLAY is not None, reason="one game is played again")
def test_random_instants(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(capsys, play(folder, instants(names(), KILLS), WORKERS, SEED))


@pytest.mark.skipif(REPLAY is not None, reason="one game is played again")
def test_system_calls(folder: Path, capsys: pytest.CaptureFixture[str], need: Callable[..., None]) -> None:
    need("strace")
    games = system_calls(folder / "counted", names(), KILLS, WORKERS, SEED)
    tell(capsys, play(folder, games, WORKERS, SEED))


@pytest.mark.skipif(REPLAY is None, reason="STRESS_KILL names no game")
def test_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert REPLAY is not None
    tell(capsys, play(folder, named(REPLAY), 1, SEED))
