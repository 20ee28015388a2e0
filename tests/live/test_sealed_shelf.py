"""Encrypted archives in a folder, with and without their keys."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from command_line import Outcome, pybackup

NIGHT, DAY = 1_764_208_800, 86400
ENVIRONMENT = {**os.environ, "TZ": "UTC"}


def run(*arguments: str | Path, code: int = 0) -> Outcome:
    done = pybackup(*arguments, env=ENVIRONMENT)
    assert done.code == code, done.err
    return done


@pytest.fixture
def shelf(made: Path, tmp_path: Path) -> Path:
    """Five nights, for one recipient, whose key lies beside the folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "shelf"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("made")
    key = tmp_path / "key"
    run("keygen", "-o", key)
    recipient = next(line for line in key.read_text().splitlines() if "public key" in line).split()[-1]
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for number in range(5):
        (tmp_path / "disk.img").write_bytes(bytes([number]) * 200_000)
        options = ("--incremental", "--max-chain", "2", "--identity", key, "--recipient", recipient)
        time = ("--time", str(NIGHT + number * DAY))
        run("run", *options, *time, tmp_path / "disk.img", shelf / "d-{now:%Y%m%d}.vma.zst.age")
    return tmp_path


def test_who_has_no_key_can_prune(shelf: Path) -> None:
    done = run("prune", "--keep-last", "1", "--time", str(NIGHT + 9 * DAY), "--json", shelf)
    assert done.json["removed"] == 3
    assert sorted(path.name for path in shelf.iterdir()) == ["d-20251130.vma.zst.age", "d-20251201.vma.zst.age"]


def test_what_is_encrypted_is_not_merged_into_the_clear(shelf: Path) -> None:
    before = sorted(path.name for path in shelf.iterdir())
    rules = ("--keep-last", "1", "--time", str(NIGHT + 9 * DAY), "--merge")
    done = run("prune", *rules, "--identity", shelf.parent / "key", shelf, code=2)
    assert "is encrypted, and what it is merged into would not be" in done.err
    assert sorted(path.name for path in shelf.iterdir() if path.name.endswith(".age")) == before[3:]
    assert not any("merged" in path.name for path in shelf.iterdir())


def test_who_has_no_key_proves_nothing(shelf: Path) -> None:
    done = run("verify", "--older-than", "1d", shelf, code=7)
    assert done.err.count("nothing is proved") == 5
    assert ": sound" in run("verify", "--older-than", "1d", "--identity", shelf.parent / "key", shelf).out.decode()


def test_who_has_no_key_and_is_told_nothing_removes_nothing(shelf: Path) -> None:
    recipient = next(line for line in (shelf.parent / "key").read_text().splitlines() if "public key" in line).split()[
        -1
    ]
    options = ("--recipient", recipient, "--no-public-facts", shelf.parent / "disk.img")
    run("run", *options, shelf / "e.vma.zst.age")
    assert "e.vma.zst.age" in run("list", shelf, code=7).out.decode()
    done = run("prune", "--keep-last", "1", shelf, code=7)
    assert "nothing is removed, for nobody knows what e.vma.zst.age needs" in done.err
    found = run("list", "--json", "--identity", shelf.parent / "key", shelf).json
    assert len(found["archives"]) == 6
