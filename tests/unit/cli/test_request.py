"""Every command that does a job takes one typed request, whose fields are what Click knows."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import click
import pytest

from pybackup.cli import request
from pybackup.cli.run_request import RunRequest
from pybackup.cli.unattended import unattended
from pybackup.cli.verify import VerifyRequest

COMMANDS = ("compare", "merge", "mount", "prune", "restore", "run", "serve", "verify")
PUBLIC = {"run": RunRequest, "verify": VerifyRequest}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_fields_of_a_request_are_the_parameters_of_its_command(name: str) -> None:
    module = importlib.import_module(f"pybackup.cli.{name}")
    asked = PUBLIC.get(name) or module._Request
    known = {one.name for one in module.command.params if one.expose_value}
    if name == "run":
        around = click.command()(unattended(RunRequest)(lambda _, facts: 0))
        known -= {one.name for one in around.params}
    assert {field.name for field in dataclasses.fields(asked)} == known
    assert asked.__dataclass_params__.frozen


def test_nothing_is_handed_on_untyped() -> None:
    """What stands behind ** is made by the two decorators, or goes to libraries that take anything."""
    root = Path(request.__file__).parents[1]
    found = {
        path.name
        for top in ("cli", "core", "formats")
        for path in (root / top).rglob("*.py")
        if re.search(r"\*\*\w+: Any", path.read_text())
    }
    assert found == {"request.py", "unattended.py", "filesystem.py", "s3_upload.py", "folder_sources.py"}
