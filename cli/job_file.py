"""Job files: what the command line of `pybackup run` says, in TOML.

The keys are those of the command's own options, and the values go through the same types. Click takes them as the
defaults of what the command line leaves out.
"""

from __future__ import annotations

from typing import Any

import click

from pybackup.cli.params import NAME, Duration, Named, NamedPath, Size
from pybackup.core.errors import RequestError, SourceError

_NUMBERS = (click.types.IntParamType, click.types.FloatParamType, Size, Duration)
_NO_KEYS = frozenset({"job", "help", "forget"})


def read_job_file(context: click.Context, _option: click.Parameter, path: str | None) -> str | None:
    """Callback of --job, which must be eager: the file's values become defaults (RequestError)."""
    if path is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **_values(path, context)}
    return path


def or_from_job_file(context: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback of an argument with any number of values, whose absence Click does not always see."""
    assert param.name is not None
    return value or param.type_cast_value(context, (context.default_map or {}).get(param.name, ()))


def _values(path: str, context: click.Context) -> dict[str, Any]:
    """The file's values by the names of the command's parameters."""
    known = {key: param for param in context.command.params for key in _keys(param)}
    values: dict[str, Any] = {}
    for key, given in _load(path).items():
        where = f"the job file {path}: {key}"
        if key not in known:
            raise RequestError(f"{where} is no option; {_alike(key, list(known))}")
        param = known[key]
        assert param.name is not None
        values[param.name] = _checked(where, param, given, context)
    return values


def _keys(param: click.Parameter) -> list[str]:
    names = (
        [name[2:] for name in param.opts if name.startswith("--")] if isinstance(param, click.Option) else param.opts
    )
    return [name for name in names if name not in _NO_KEYS]


def _load(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SourceError(f"cannot read the job file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the job file {path} is not TOML: {error}") from error


def _alike(key: str, known: list[str]) -> str:
    from difflib import get_close_matches

    alike = get_close_matches(key, known, 1)
    return f"did you mean {alike[0]}?" if alike else "there are " + ", ".join(sorted(known))


def _checked(where: str, param: click.Parameter, given: Any, context: click.Context) -> Any:
    """The value as Click wants a default to be; RequestError if it would not do on the command line either."""
    if isinstance(param, click.Option) and param.is_flag:
        if not isinstance(given, bool):
            raise RequestError(f"{where} must be true or false")
        return given
    if param.multiple or param.nargs == -1:
        value: Any = _several(where, param, given)
    else:
        value = _one(where, param, given)
    try:
        param.type_cast_value(context, value)
    except click.UsageError as error:
        raise RequestError(f"{where}: {error.message}") from None
    return value


def _several(where: str, param: click.Parameter, given: Any) -> list[Any]:
    if isinstance(given, dict) and isinstance(param.type, NamedPath):
        for name in given:
            if not NAME.fullmatch(name):
                rule = "use letters, digits, dots, _, - and spaces within"
                raise RequestError(f"{where}: {name!r} cannot be a name; {rule}")
        return [Named(name, _one(f"{where}.{name}", param, what)) for name, what in given.items()]
    if isinstance(given, list):
        return [_one(where, param, one) for one in given]
    return [_one(where, param, given)]


def _one(where: str, param: click.Parameter, given: Any) -> str:
    """One value, as it would stand on the command line."""
    takes_numbers = isinstance(param.type, _NUMBERS)
    if isinstance(given, str) and "\0" not in given:
        return given
    if isinstance(given, int | float) and not isinstance(given, bool) and takes_numbers:
        return str(given)
    wanted = "a number or a string" if takes_numbers else "a string"
    if param.multiple or param.nargs == -1:
        wanted += ", or several"
    raise RequestError(f"{where} must be {wanted}")
