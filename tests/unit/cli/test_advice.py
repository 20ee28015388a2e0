"""What the command line adds to what `core` says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import pybackup.core
from pybackup.cli.advice import WORDS, with_advice
from pybackup.cli.failures import describe
from pybackup.cli.group import group
from pybackup.core.errors import Advice, BusyError, TargetError

CORE = Path(pybackup.core.__file__ or "").parent


def test_an_error_without_advice_is_told_as_it_is() -> None:
    assert with_advice(TargetError("the disk is full")) == "the disk is full"


def test_advice_ends_the_sentence() -> None:
    error = TargetError("disk.raw exists already", advice=Advice.REPLACE)
    assert str(error) == "disk.raw exists already"
    assert describe(error) == ("disk.raw exists already; --force replaces it", 5)


@pytest.mark.parametrize("advice", list(Advice))
def test_there_are_words_for_every_advice(advice: Advice) -> None:
    error = BusyError("no", advice=advice, about="qcow2")
    assert with_advice(error) == f"no{WORDS[advice].format(about='qcow2')}"
    assert "{" not in with_advice(error)


def options() -> set[str]:
    """Every option of every command."""
    context = click.Context(group)
    commands = [group.get_command(context, name) for name in group.list_commands(context)]
    params = [param for one in commands if one is not None for param in one.params]
    return {name for param in params for name in param.opts if name.startswith("--")}


def literals(path: Path) -> Iterator[str]:
    """The strings of a module, but for its docstrings."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def test_core_names_no_option_of_the_command_line() -> None:
    ours, modules = options(), sorted(CORE.rglob("*.py"))
    assert "--force" in ours and len(modules) > 100
    named = {
        (path.name, word)
        for path in modules
        for text in literals(path)
        for word in re.findall(r"--[a-z][a-z-]*", text)
        if word in ours
    }
    theirs = {("qemu_nbd.py", "--read-only"), *(("domain.py", word) for word in ("--all", "--uuid", "--device"))}
    theirs |= {("thaw.py", "--uuid"), ("files.py", "--format")}
    theirs |= {(file, word) for file in ("thaw.py", "virsh.py") for word in ("--connect", "--quiet")}
    assert named == theirs, "these are words for `cli`, but for options of other programs"
