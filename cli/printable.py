"""Text for people and programs: nothing in it steers a terminal, and everything can be read as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import click

from pybackup.formats.text import encodable, shown

_PROGRAM = "pybackup: "
_subject: ContextVar[str] = ContextVar("_subject", default="")


@contextmanager
def speaking_of(subject: str) -> Iterator[None]:
    """What is told meanwhile of a run of several is about this one, and names it."""
    before = _subject.set(f"{subject}: ")
    try:
        yield
    finally:
        _subject.reset(before)


def say(text: str, *, err: bool = False) -> None:
    """Print a line. What came from an archive, a server or a file name, and is not printable, is escaped."""
    if err and text.startswith(_PROGRAM):
        text = f"{_PROGRAM}{_subject.get()}{text.removeprefix(_PROGRAM)}"
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
