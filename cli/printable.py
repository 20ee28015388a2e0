"""Text for people and programs: nothing in it steers a terminal, and everything can be read as JSON."""

from __future__ import annotations

import json
from typing import Any

import click

from pybackup.formats.text import encodable, shown


def say(text: str, *, err: bool = False) -> None:
    """Print a line. What came from an archive, a server or a file name, and is not printable, is escaped."""
    click.echo(shown(text), err=err)


def as_json(value: Any) -> str:
    """JSON on one line; bytes of names that are no UTF-8 stand there as \\xNN."""
    return json.dumps(_encodable(value))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable(key): _encodable(one) for key, one in value.items()}
    return [_encodable(one) for one in value] if isinstance(value, list | tuple) else value
