"""Parameter types: sizes, rates, and drives by name."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    _SizeType = click.ParamType[int]
else:
    _SizeType = click.ParamType  # older versions of Click know no types of values

_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?(?:/s)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from a number with a binary suffix K, M, G or T; ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 512, 64K or 1.5G")
    shift = _SUFFIXES[match[2].upper()]
    whole, _, decimals = match[1].partition(".")
    scale: int = 10 ** len(decimals)
    size, rest = divmod(int(whole + decimals) << shift, scale)
    if rest:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return size


class Size(_SizeType):
    """A size or rate: bytes, with K, M, G or T for powers of 1024."""

    name = "size"

    def __init__(self, minimum: int = 0, maximum: int | None = None) -> None:
        self._minimum, self._maximum = minimum, maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        try:
            size = parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if size < self._minimum:
            self.fail(f"{value} is smaller than {self._minimum} bytes", param, ctx)
        if self._maximum is not None and size > self._maximum:
            self.fail(f"{value} is larger than {self._maximum} bytes", param, ctx)
        return size


class Whole(click.IntRange):
    """A whole number within limits, which are told in words."""

    def _describe_range(self) -> str:
        return f"{self.min} or more" if self.max is None else f"{self.min} to {self.max}"


class Named(NamedTuple):
    """Something that may have been given a name: NAME=WHAT."""

    name: str | None
    what: str


_NAME = re.compile(r"[A-Za-z0-9_.-]+")

if TYPE_CHECKING:
    _NamedType = click.ParamType[Named]
else:
    _NamedType = click.ParamType


class NamedPath(_NamedType):
    """[NAME=]PATH. A path with a slash before the first = has no name."""

    name = "[name=]path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Named:
        """Split at the first =."""
        if isinstance(value, Named):
            return value
        name, equals, what = str(value).partition("=")
        if equals and _NAME.fullmatch(name) and what:
            return Named(name, what)
        return Named(None, str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Paths are completed by the shell, but by us where a name stands before one."""
        from glob import escape, glob

        from click.shell_completion import CompletionItem

        named = self.convert(incomplete, param, ctx)
        if named.name is None:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(f"{named.name}={path}") for path in sorted(glob(escape(named.what) + "*"))]


def same_file(one: str, other: str) -> bool:
    """Whether both names are those of one file that exists."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
