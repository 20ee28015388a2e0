"""What is in the manual pages, for tests that try it."""

from __future__ import annotations

import re
from pathlib import Path

MAN = Path(__file__).parents[1] / "man"
_ESCAPES = {"\\-": "-", "\\(aq": "'", "\\(rs": "\\", "\\&": ""}


def written(text: str) -> str:
    """What a reader sees of roff text."""
    text = re.sub(r"\\f[BIR]", "", text)
    return re.sub(r"\\(?:\(..|.)", lambda found: _ESCAPES.get(found[0], ""), text)


def examples(path: Path) -> list[str]:
    """Every part of a page that is set line by line, as it is read."""
    return [written(block) for block in re.findall(r"^\.nf\n(.*?)^\.fi$", path.read_text(), re.DOTALL | re.MULTILINE)]


def command_lines(path: Path) -> list[str]:
    """The lines of a page's examples that call a program, each without what is continued."""
    lines = [line for block in examples(path) for line in block.replace("\\\n", " ").split("\n")]
    if path.suffix == ".1":
        return [line for line in lines if line.startswith("pybackup ") or "| pybackup " in line]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def jobs() -> list[str]:
    """The job files among the examples of pybackup-job(5)."""
    return [block for block in examples(MAN / "pybackup-job.5") if "archive =" in block]
