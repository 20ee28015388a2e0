"""What all commands have in common: how Ctrl-C ends them, and what an option that they do not have might have meant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from pybackup.cli.signals import cleaned_up
from pybackup.core.errors import CancelledError

_MEANT = {
    "--overwrite": "--force",
    "--yes": "--force",
    "--name": "--drive",
    "--disk": "--drive",
    "--target": "--to",
    "--output": "--to",
    "--limit": "--speed",
    "--rate": "--speed",
    "--rate-limit": "--speed",
    "--ratelimit": "--speed",
    "--bwlimit": "--speed",
    "--bwlim": "--speed",
    "--jobs": "--threads",
    "--workers": "--threads",
    "--compression": "--compress",
    "--compression-level": "--level",
    "--check": "--verify",
    "--silent": "--quiet",
    "--debug": "--verbose",
    "--image-format": "--format",
    "--ignore-errors": "--skip-unreadable",
    "--salvage": "--skip-unreadable",
    "--listen": "--socket",
    "--port": "--tcp",
    "--readonly": "--read-only",
    "--unsafe": "--force-share",
    "--config-file": "--config",
}
"""What other programs call our options."""


class UnforeseenError(Exception):
    """Carries a failure past Click, which would take it for one of its own; ``__cause__`` is the failure."""


class Command(click.Command):
    """A command of pybackup."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As Click does it; an option that others have is told by the name that it has here."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            meant = _MEANT.get(error.option_name)
            if meant is None or not any(meant in param.opts for param in self.params):
                raise
            raise click.UsageError(f"No such option {error.option_name!r}. Did you mean {meant!r}?", ctx) from None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Below the options: the units of values, and examples."""
        from pybackup.cli.examples import EXAMPLES, UNITS

        metavars = {part for param in self.params for part in (param.metavar or "").split("=")}
        if units := [(name, what) for name, what in UNITS.items() if name in metavars]:
            with formatter.section("Values"):
                formatter.write_dl(units)
        if examples := EXAMPLES.get(self.name or ""):
            with formatter.section("Examples"):
                for what, lines in examples.items():
                    formatter.write_text(f"{what}:")
                    formatter.write("".join(f"    {line}\n" for line in lines.split("\n")))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; CancelledError where Ctrl-C ended it."""
        with cleaned_up():
            try:
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
            except KeyboardInterrupt:
                raise CancelledError from None
            except (OSError, EOFError, SystemExit) as error:
                raise UnforeseenError from error


def later(name: str) -> Callable[[click.Context, click.Parameter, str], Any]:
    """A function of `shell_completion`, by its name: loaded when a shell asks."""

    def complete(context: click.Context, param: click.Parameter, incomplete: str) -> Any:
        from pybackup.cli import shell_completion

        return getattr(shell_completion, name)(context, param, incomplete)

    return complete
