"""The manual pages are those that the commands make, and roff understands them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

MAN = Path(__file__).parents[2] / "man"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", MAN / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_current() -> None:
    expected = generator().pages()
    found = {path.name: path.read_text() for path in MAN.glob("*.1")}
    assert found == expected, "run `make man`"


@pytest.mark.parametrize("path", sorted([*MAN.glob("*.1"), *MAN.glob("*.5")]), ids=lambda path: path.name)
def test_roff_has_nothing_to_warn_of(path: Path, need) -> None:  # type: ignore[no-untyped-def]
    need("man")
    outcome = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(path)],
        capture_output=True,
        text=True,
        env={"MANWIDTH": "100", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        check=True,
    )
    assert outcome.stderr == ""
    # Bold is a letter struck over itself, where man does not do it with escape sequences.
    assert "NAME" in re.sub(".\b", "", outcome.stdout)
