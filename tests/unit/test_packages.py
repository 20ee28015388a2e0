"""What is installed is all of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_folder_of_modules_is_installed() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for top in ("cli", "core", "formats") for path in (ROOT / top).rglob("*.py")}
    expected = {"pybackup." + ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(tools["packages"]) == expected
    assert tools["package-dir"] == {name: name.removeprefix("pybackup.").replace(".", "/") for name in expected}


def test_the_types_are_installed_too() -> None:
    """Without py.typed a type checker takes all of the library for Any."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    tops = ("cli", "core", "formats")
    assert tools["package-data"] == {f"pybackup.{top}": ["py.typed"] for top in tops}
    assert all((ROOT / top / "py.typed").is_file() for top in tops)
