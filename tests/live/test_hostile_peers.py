"""A short game with hostile clients and servers each; `make stress` plays many."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile.games import play_against_clients, play_against_server


def test_an_honest_client_and_backups_among_hostile_clients(tmp_path: Path) -> None:
    done = play_against_clients(tmp_path, 1, backups=1)
    assert done.hostile > 0 and done.honest > 0


@pytest.mark.parametrize("seed", range(3))
def test_hostile_servers(tmp_path: Path, seed: int) -> None:
    assert play_against_server(tmp_path, seed) in {
        f"run {read}, restore {written}" for read in (0, 3) for written in (0, 5)
    }
