"""pybackup info: what an archive holds."""

from __future__ import annotations

import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import click

from pybackup.cli.advice import with_advice
from pybackup.cli.command import Command
from pybackup.cli.consistency import in_words
from pybackup.cli.elsewhere import archive_place
from pybackup.cli.names import printable
from pybackup.cli.numbers import percent, short
from pybackup.cli.options import json_option, threads_option
from pybackup.cli.params import PlainPath
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.running import threads_or_default
from pybackup.cli.unreadable import archive_lines
from pybackup.core.archive.facts import ArchiveFacts, DriveMap, archive_facts
from pybackup.core.errors import ArchiveError, ExitCode
from pybackup.core.guest.consistency import consistency_of
from pybackup.core.places.kinds import ArchivePlace, StandardStream
from pybackup.formats.vma import DriveInfo

if TYPE_CHECKING:
    from rich.table import Table

MAP_WIDTH = 64
_SHADES = " ░▒▓█"


@click.command("info", cls=Command, short_help="Tell what an archive holds.")
@click.argument("archives", type=PlainPath(archive_place), nargs=-1, required=True, metavar="ARCHIVE...")
@click.option("--map", "with_map", is_flag=True, help="Draw where data and zeros lie.")
@threads_option
@json_option
def command(archives: tuple[ArchivePlace, ...], with_map: bool, threads: int | None, as_json: bool) -> int:
    """Tell what an archive holds, or several: drives with their sizes, configurations, and where it comes from.

    Only the index is read where there is one; other archives are read through. ARCHIVE may be - for the standard
    input, or a URL. With --json each archive has a line.
    """
    code = 0
    for number, archive in enumerate(archives):
        if number and not as_json:
            click.echo()
        try:
            _tell(archive, with_map, threads, as_json)
        except ArchiveError as error:
            if len(archives) == 1:
                raise
            sys.stdout.flush()
            click.echo(f"pybackup: {with_advice(error)}", err=True)
            code = int(ExitCode.ARCHIVE)
    return code


def _tell(archive: ArchivePlace, with_map: bool, threads: int | None, as_json: bool) -> None:
    facts = archive_facts(archive, threads=threads_or_default(threads))
    if as_json:
        print(json_text(_as_dict(archive, facts, with_map)))
    else:
        _print(archive, facts, with_map)


def _row(facts: ArchiveFacts, drive: DriveInfo) -> dict[str, Any]:
    counts = facts.counts[drive.drive_id]
    stored = counts.stored_bytes
    return {
        "name": drive.name,
        "size": drive.size,
        "stored": stored,
        "zero": max(0, drive.size - stored),
        "compressed": facts.compressed[drive.drive_id] if facts.compressed is not None else None,
    }


def _as_dict(archive: ArchivePlace, facts: ArchiveFacts, with_map: bool) -> dict[str, Any]:
    header = facts.header
    drives = [_row(facts, drive) for drive in header.drives]
    if with_map:
        for row, drive in zip(drives, header.drives, strict=True):
            drive_map = facts.maps[drive.drive_id]
            row["map"] = {"clusters_per_cell": drive_map.clusters_per_cell, "stored_clusters": drive_map.cells}
    return {
        "archive": str(archive),
        "uuid": str(uuid.UUID(bytes=header.uuid)),
        "created": header.created,
        "size": facts.size,
        "compression": facts.compression,
        "index": facts.has_index,
        "delta": header.is_delta,
        "parent": str(uuid.UUID(bytes=header.parent_uuid)) if header.is_delta else None,
        **consistency_of(facts.about),
        "drives": drives,
        "configs": [{"name": name, "size": len(content)} for name, content in header.configs],
        "about": facts.about,
    }


def _print(archive: ArchivePlace, facts: ArchiveFacts, with_map: bool) -> None:
    header = facts.header
    created = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(header.created, 253402300799)))
    called = "the standard input" if isinstance(archive, StandardStream) else str(archive)
    say(
        f"{called}: {'VMA' if facts.compression == 'vma' else 'VMA in ' + facts.compression},"
        f" {short(facts.size) if facts.size is not None else 'size unknown'},"
        f" {'with' if facts.has_index else 'without'} index"
    )
    click.echo(f"uuid     {uuid.UUID(bytes=header.uuid)}\ncreated  {created}")
    if facts.about.get("tool"):
        click.echo(f"made by  {printable(facts.about['tool'])}")
    if (state := in_words(facts.about)) is not None:
        click.echo(f"state    {state}")
    if header.is_delta:
        click.echo(
            f"parent   {uuid.UUID(bytes=header.parent_uuid)}: only what changed since then is here, and this version of"
            " pybackup cannot restore it"
        )
    for name, content in header.configs:
        click.echo(f"config   {printable(name)} ({len(content)} bytes)")
    rows = [_row(facts, drive) for drive in header.drives]
    if sys.stdout.isatty():
        _print_table(facts)
    else:
        _print_plain(rows)
    for line in archive_lines(facts.about.get("unreadable")):
        click.echo(line)
    if with_map:
        for drive in header.drives:
            click.echo(
                f"\n{printable(drive.name)}: each character is {_cell_size(facts.maps[drive.drive_id])};"
                f" '{_SHADES[0]}' zero … '{_SHADES[-1]}' data"
            )
            for line in draw_map(facts.maps[drive.drive_id], _map_width()):
                click.echo(f"  |{line}|")


_COLUMNS = ("drive", "size", "stored", "zero", "compressed", "ratio")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    compressed = row["compressed"]
    return (
        printable(row["name"]),
        short(row["size"]),
        short(row["stored"]),
        f"{short(row['zero'])} ({percent(row['zero'], row['size'])})",
        "-" if compressed is None else short(compressed),
        "-" if compressed is None else percent(compressed, row["stored"]),
    )


def make_table(facts: ArchiveFacts) -> Table:
    """The drives as a rich table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "drive" else "right")
    for drive in facts.header.drives:
        table.add_row(*map(Text, _cells(_row(facts, drive))))
    return table


def _print_table(facts: ArchiveFacts) -> None:
    from rich.console import Console

    Console().print(make_table(facts))


def _print_plain(rows: list[dict[str, Any]]) -> None:
    lines = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    for line in lines:
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        cells = [line[0].ljust(widths[0]), *rest]
        click.echo("  ".join(cells))


def _cell_size(drive_map: DriveMap) -> str:
    return short(drive_map.clusters_per_cell * 65536)


def _map_width() -> int:
    """Characters in a line of a map: on a narrow terminal fewer than elsewhere."""
    if not sys.stdout.isatty():
        return MAP_WIDTH
    from shutil import get_terminal_size

    return max(1, min(MAP_WIDTH, get_terminal_size().columns - len("  ||")))


def draw_map(drive_map: DriveMap, width: int) -> list[str]:
    """Lines of shades, one character a cell."""
    scale = (len(_SHADES) - 1) / drive_map.clusters_per_cell
    text = "".join(_SHADES[max(1, round(count * scale)) if count else 0] for count in drive_map.cells)
    return [text[at : at + width] for at in range(0, len(text), width)]
