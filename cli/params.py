"""Parameter types: sizes, rates, and drives by name."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import click

from pybackup.cli.priority import IoPriority, parse_io_priority

if TYPE_CHECKING:
    _SizeType = click.ParamType[int]
    _DurationType = click.ParamType[float]
    _IoType = click.ParamType[IoPriority]
else:
    _SizeType = _DurationType = _IoType = click.ParamType  # older versions of Click know no types of values

_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE | re.ASCII)
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*%", re.ASCII)
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


def parse_duration(text: str) -> float:
    """Seconds from a number with s, m, h or d; ValueError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write for example 90, 90s, 10m, 2h or 30d")
    return float(match[1]) * _SECONDS[match[2].lower()]


class Percent(_DurationType):
    """A share of something: 5%."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """From above 0 to 1."""
        if isinstance(value, float):
            return value
        match = _PERCENT.fullmatch(str(value).strip())
        if match is None or not 0 < float(match[1]) <= 100:
            self.fail(f"{value!r} is not a share; write for example 5% or 0.5%", param, ctx)
        return float(match[1]) / 100


class Duration(_DurationType):
    """A duration: seconds, with m, h or d for longer ones."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of seconds."""
        if isinstance(value, int | float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class IoClass(_IoType):
    """An I/O priority: CLASS[:LEVEL]."""

    name = "class"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IoPriority:
        """The priority."""
        if isinstance(value, IoPriority):
            return value
        try:
            return parse_io_priority(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Whole(click.IntRange):
    """A whole number within limits, which are told in words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number ({self._describe_range()})", param, ctx)
        return super().convert(number, param, ctx)

    def _describe_range(self) -> str:
        return f"{self.min} or more" if self.max is None else f"{self.min} to {self.max}"


class Seconds(click.FloatRange):
    """A number of seconds within limits, which are told in words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, which is one."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds ({self._describe_range()})", param, ctx)
        return super().convert(number, param, ctx)

    def _describe_range(self) -> str:
        least = f"more than {self.min}" if self.min_open else f"{self.min} or more"
        return least if self.max is None else f"{least}, at most {self.max}"


P = TypeVar("P")


class Named(NamedTuple, Generic[P]):
    """Something that may have been given a name: NAME=WHAT."""

    name: str | None
    what: P


NAME = re.compile(r"[\w.-]+(?: +[\w.-]+)*")
"""The names that can be given to a drive or a configuration: letters of any script, and spaces within."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""Those before a = that are never the beginning of a path."""

if TYPE_CHECKING:
    _NamedType = click.ParamType[Named[Any]]
else:
    _NamedType = click.ParamType


class NamedPath(_NamedType):
    """[NAME=]PATH, or [NAME=]PLACE. A path with a slash before the first = has no name.

    Nor has one with spaces or letters beyond ASCII there, if the file exists.

    ``parse`` makes what is wanted of the path, or raises for what cannot be one.
    """

    name = "[name=]path"

    def __init__(self, parse: Callable[[str], object] = str) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Named[Any]:
        """Split at the first =."""
        named = value if isinstance(value, Named) else self._split(str(value))
        return Named(named.name, _parsed(self._parse, named.what, ctx))

    @staticmethod
    def _split(value: str) -> Named[str]:
        name, equals, what = value.partition("=")
        is_name = equals and what and NAME.fullmatch(name)
        if is_name and (_PLAIN_NAME.fullmatch(name) or not os.path.lexists(value)):
            return Named(name, what)
        return Named(None, value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Paths are completed by the shell, but by us where a name stands before one."""
        from glob import escape, glob

        from click.shell_completion import CompletionItem

        named = self._split(incomplete)
        if named.name is None:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(f"{named.name}={path}") for path in sorted(glob(escape(named.what) + "*"))]


class PlainPath(click.Path):
    """A path or a place, of which whoever opens it says why it cannot be opened, and on which side.

    ``parse`` makes what is wanted of the path, or raises for what cannot be one.
    """

    def __init__(self, parse: Callable[[str], object] = str) -> None:
        super().__init__(readable=False)
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What is made of it."""
        return _parsed(self._parse, value, ctx)


def _parsed(parse: Callable[[str], object], value: Any, ctx: click.Context | None) -> object:
    """What is made of a text; the text itself while a command line is completed, which may be wrong as yet."""
    if not isinstance(value, str) or (ctx is not None and ctx.resilient_parsing):
        return value
    return parse(value)
