"""What is in the manual pages and the documents, for tests that try it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import click

from pybackup.cli.main import COMMANDS

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


def options_of(command: str) -> list[str]:
    """The names of a command's arguments and options."""
    known: click.Command = import_module(f"pybackup.cli.{command}").command
    return [name for param in known.params for name in param.opts] + ["--help"]


def unknown_words(lines: Iterable[str]) -> list[str]:
    """The commands and options of calls of pybackup in these lines of shell that there are not."""
    unknown = []
    for line in lines:
        for _, command, *arguments in (call for call in _pipeline(line) if call[:1] == ["pybackup"]):
            if command not in COMMANDS:
                unknown.append(command)
                continue
            known = options_of("run" if arguments[1:2] == ["backup"] else command)
            unknown += [one for one in arguments if re.match("--?[a-z]", one) and one not in known]
    return unknown


def _pipeline(line: str) -> list[list[str]]:
    """The words of each command of a line."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set("|&;<>()"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
