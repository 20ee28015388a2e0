"""Tables: drawn by rich on a terminal, plain columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from pybackup.cli.names import printable

_EIGHTHS = " ▏▎▍▌▋▊▉█"


_GAP = 2
"""Characters between two columns."""


@dataclass(frozen=True, slots=True)
class Column:
    """``spare``: on a narrow terminal it is left out, that with the smallest number first.

    ``flexible``: where that is not enough it goes on in the next line, but is not made narrower than so many characters
    while any other can be left out.
    """

    name: str
    right: bool = False
    flexible: int = 0
    spare: int = 0


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; nothing in a cell can steer a terminal."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, cells)
        return
    lines = [[column.name for column in columns], *cells]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        parts = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())


def _print_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = [max(len(line[at]) for line in ([one.name for one in columns], *rows)) for at in range(len(columns))]
    shown = _fitting(columns, widths, console.width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for at in shown:
        table.add_column(
            columns[at].name,
            justify="right" if columns[at].right else "left",
            no_wrap=not columns[at].flexible,
            overflow="fold",
            min_width=None if columns[at].flexible else widths[at],
        )
    for row in rows:
        table.add_row(*(Text(row[at]) for at in shown))
    console.print(table)


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """Which columns are shown on a terminal of ``width`` characters."""
    shown = list(range(len(columns)))
    for left_out in sorted((at for at in shown if columns[at].spare), key=lambda at: columns[at].spare):
        least = (min(widths[at], columns[at].flexible) if columns[at].flexible else widths[at] for at in shown)
        if sum(least) + _GAP * (len(shown) - 1) <= width:
            break
        shown.remove(left_out)
    return shown


def bar(part: float, whole: float, width: int) -> str:
    """A bar as long as a share, of at most ``width`` characters; what is not nothing can be seen."""
    eighths = round(8 * width * min(1.0, part / whole)) if whole > 0 else 0
    if part > 0:
        eighths = max(1, eighths)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")
