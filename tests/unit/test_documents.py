"""What the documents in the clone name is there, and no line of theirs needs more than 80 columns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from manual_pages import MAN, unknown_words

CLONE = Path(__file__).parents[2]
README, CONTRIBUTING = CLONE / "README.md", CLONE / "CONTRIBUTING.md"


@pytest.mark.parametrize("path", [README, CONTRIBUTING], ids=lambda path: path.name)
def test_80_columns_are_enough(path: Path) -> None:
    assert [line for line in path.read_text().split("\n") if len(line) > 80] == []


@pytest.mark.parametrize("path", [README, CONTRIBUTING], ids=lambda path: path.name)
def test_what_is_linked_to_is_there(path: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", path.read_text())
    assert links and [link for link in links if not (CLONE / link).exists()] == []


@pytest.mark.parametrize("path", [README, CONTRIBUTING], ids=lambda path: path.name)
def test_commands_and_options_are_there(path: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", path.read_text(), re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.replace("\\\n", " ").split("\n") if line.startswith("$ ")]
    assert unknown_words(lines) == []
    assert any("pybackup run" in line for line in lines)


def test_pages_that_the_readme_names_are_there() -> None:
    named = set(re.findall(r"(pybackup[a-z-]*)\((\d)\)", README.read_text()))
    assert len(named) > 8
    assert [f"{name}.{section}" for name, section in named if not (MAN / f"{name}.{section}").exists()] == []


def test_files_that_contributors_are_sent_to_are_there() -> None:
    named = re.findall(r"`((?:cli|core|formats|man|tests)/[\w./*-]+)`", CONTRIBUTING.read_text())
    placeholders = {"cli/NAME.py", "tests/*.py"}
    assert len(named) > 30
    assert [name for name in named if name not in placeholders and not list(CLONE.glob(name.rstrip("/")))] == []
