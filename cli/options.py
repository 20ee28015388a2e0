"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from pybackup.cli.params import Size

F = TypeVar("F", bound=Callable[..., Any])


def _all_of(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


job_options = _all_of(
    click.option(
        "--speed",
        type=Size(),
        default="0",
        metavar="RATE",
        help="At most RATE bytes a second, for example 50M; 0 means no limit.",
        show_default=True,
    ),
    click.option(
        "--progress",
        type=click.Choice(["auto", "rich", "plain", "json", "none"]),
        default="auto",
        show_default=True,
        help="How to show progress on stderr: a picture on a terminal, lines for logs,"
        " one JSON object a line, or nothing. auto: rich on a terminal, else none.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Neither progress nor summary; only failures."),
    click.option("-v", "--verbose", is_flag=True, help="Tell more about what is done."),
    click.option(
        "--trace",
        metavar="EVENTS",
        default="",
        help="Print trace events on stderr, one JSON object a line:"
        " names or patterns, separated by commas, such as 'copy.*,job.state'; 'help' lists them.",
    ),
)

json_option = click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=None,
    metavar="N",
    help="Threads that compress or decompress [default: one a processor].",
)
