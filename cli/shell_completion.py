"""What completion knows beyond Click: values after `--option=`, and the names of what an archive holds."""

from __future__ import annotations

import os
from glob import escape, glob
from typing import TYPE_CHECKING

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

if TYPE_CHECKING:
    from pybackup.formats.vma import Header


_words: list[str] = []
"""The words before the one to complete."""


class _WithValues(ShellComplete):
    """Completes the value in `--option=value`, which fish and zsh see as one word, and bash as three."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """As Click does it; behind an option's = with all of the word."""
        _words[:] = args
        if args and args[-1] == "=":
            return super().get_completions(args[:-1], incomplete)
        option, equals, value = incomplete.partition("=")
        if not (equals and option.startswith("--")):
            return super().get_completions(args, incomplete)
        return [
            CompletionItem(f"{option}={word}", help=item.help)
            for item in super().get_completions([*args, option], value)
            for word in ([item.value] if item.type == "plain" else sorted(glob(escape(value) + "*")))
        ]


class _Bash(_WithValues, BashComplete):
    pass


class _Zsh(_WithValues, ZshComplete):
    pass


class _Fish(_WithValues, FishComplete):
    # What stands behind the first comma belongs to the description.
    source_template = FishComplete.source_template.replace('string split ","', 'string split --max 1 ","')


def register() -> None:
    """Let Click use all this."""
    for kind in (_Bash, _Zsh, _Fish):
        add_completion_class(kind)


def _header(context: click.Context) -> Header | None:
    """The header of the archive that stands on the command line, if it can be had at once."""
    from pybackup.core.archive.drives import archive_header
    from pybackup.core.archive.open import has_ranges
    from pybackup.core.places.kinds import LocalPath

    # Where an option still lacks its value, Click has not looked at the arguments.
    named = context.params.get("archive")
    archive = named or next((word for word in _words[1:] if not word.startswith("-") and os.path.isfile(word)), None)
    if archive is None or not has_ranges(LocalPath(archive)):
        return None
    try:
        return archive_header(LocalPath(archive))
    except Exception:  # whatever it is, the command itself will tell
        return None


def drive_names(context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The archive's drives."""
    header = _header(context)
    names = [drive.name for drive in header.drives] if header else []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def config_names(context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The archive's configurations."""
    header = _header(context)
    names = [name for name, _ in header.configs] if header else []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def places(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """NAME= for each of the archive's drives, and then a path."""
    if "=" in incomplete:
        return param.type.shell_complete(context, param, incomplete)
    return [CompletionItem(f"{item.value}=") for item in drive_names(context, param, incomplete)]
