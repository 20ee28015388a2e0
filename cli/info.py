"""pybackup info: what an archive holds."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from pybackup.cli.advice import with_advice
from pybackup.cli.command import Command
from pybackup.cli.consistency import in_words
from pybackup.cli.elsewhere import archive_place
from pybackup.cli.names import printable
from pybackup.cli.numbers import percent, short
from pybackup.cli.options import json_option, key_options, parents_option, threads_option
from pybackup.cli.params import PlainPath
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.running import threads_or_default
from pybackup.cli.unreadable import archive_lines
from pybackup.core.archive.ancestors import Ancestors, ancestors_of
from pybackup.core.archive.chain import ParentSearch
from pybackup.core.archive.facts import ArchiveFacts, DriveMap, archive_facts
from pybackup.core.archive.identity import ArchiveIdentity
from pybackup.core.errors import ArchiveError, ExitCode
from pybackup.core.guest.consistency import consistency_of
from pybackup.core.places.kinds import ArchivePlace, HistoryPlace, StandardStream
from pybackup.formats.vma import DriveInfo
from pybackup.formats.vma_layout import CLUSTER_SIZE

if TYPE_CHECKING:
    from rich.table import Table

MAP_WIDTH = 64
LAST_SECOND = 253402300799
"""Of the year 9999."""
_SHADES = " ░▒▓█"


@click.command("info", cls=Command, short_help="Tell what an archive holds.")
@click.argument("archives", type=PlainPath(archive_place), nargs=-1, required=True, metavar="ARCHIVE...")
@click.option("--map", "with_map", is_flag=True, help="Draw where data and zeros lie.")
@key_options
@parents_option
@threads_option
@json_option
def command(
    archives: tuple[ArchivePlace, ...],
    with_map: bool,
    threads: int | None,
    as_json: bool,
    parents: tuple[HistoryPlace, ...],
) -> int:
    """Tell what an archive holds, or several: drives with their sizes, configurations, and where it comes from.

    Only the index is read where there is one; other archives are read through. ARCHIVE may be - for the standard
    input, or a URL. With --json each archive has a line. Of a delta, which holds only what changed since its parent,
    the archives that it needs are listed, with what each of them cost.
    """
    code = 0
    for number, archive in enumerate(archives):
        if number and not as_json:
            click.echo()
        try:
            _tell(archive, with_map, threads, as_json, parents)
        except ArchiveError as error:
            if len(archives) == 1:
                raise
            sys.stdout.flush()
            click.echo(f"pybackup: {with_advice(error)}", err=True)
            code = int(ExitCode.ARCHIVE) if code == ExitCode.ARCHIVE else int(error.exit_code)
    return code


def _tell(
    archive: ArchivePlace, with_map: bool, threads: int | None, as_json: bool, parents: Sequence[HistoryPlace]
) -> None:
    facts = archive_facts(archive, threads=threads_or_default(threads))
    identity = ArchiveIdentity(str(archive), facts.header, facts.digest, facts.size, facts.about)
    ancestors = ancestors_of(identity, archive, ParentSearch(parents))
    if as_json:
        print(json_text(_as_dict(archive, facts, with_map) | history_as_dict(ancestors)))
    else:
        _print(archive, facts, with_map, ancestors)


def _row(facts: ArchiveFacts, drive: DriveInfo) -> dict[str, Any]:
    counts = facts.counts[drive.drive_id]
    stored = counts.stored_bytes
    listed = min(drive.size, (counts.stored_clusters + counts.zero_clusters) * CLUSTER_SIZE)
    unchanged = {"unchanged": drive.size - listed} if facts.header.is_delta else {}
    return {
        "name": drive.name,
        "size": drive.size,
        "stored": stored,
        "zero": max(0, listed - stored) if facts.header.is_delta else max(0, drive.size - stored),
        **unchanged,
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


def _print(archive: ArchivePlace, facts: ArchiveFacts, with_map: bool, ancestors: Ancestors) -> None:
    header = facts.header
    created = _time(header.created)
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
        for line in history_lines(facts, ancestors):
            click.echo(line)
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


def history_lines(facts: ArchiveFacts, ancestors: Ancestors) -> Iterator[str]:
    """What a delta needs: each archive with its time and its size, the newest first."""
    count = len(ancestors.found)
    sizes = [facts.size or 0, *(link.identity.size or 0 for link in ancestors.found)]
    since = _when(facts.about.get("parent"))
    all_of_it = "what it needs" if ancestors.missing is None else "what is there of what it needs,"
    yield f"delta    holds what changed since {since}; with {all_of_it} {short(sum(sizes))}"
    for number, link in enumerate(ancestors.found):
        identity = link.identity
        kind = "delta" if identity.is_delta else "full"
        begin = "needs    " if not number else "         "
        yield (
            f"{begin}{_time(identity.created)}  {kind:5}  {short(identity.size or 0):>10}"
            f"  {printable(os.path.basename(str(link.place)))}"
        )
    if ancestors.missing is not None:
        yield f"missing  {printable(with_advice(ancestors.missing))}"
    elif count:
        yield f"chain    {count + 1} archives, back to {_time(ancestors.found[-1].identity.created)}"


def _when(parent: object) -> str:
    created = parent.get("created") if isinstance(parent, dict) else None
    return _time(created) if isinstance(created, int) else "its parent"


def _time(created: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(max(0, min(created, LAST_SECOND))))


def history_as_dict(ancestors: Ancestors) -> dict[str, Any]:
    """The archives that a delta needs, for JSON."""
    needs = [
        {
            "archive": str(link.place),
            "uuid": str(uuid.UUID(bytes=link.identity.uuid)),
            "created": link.identity.created,
            "delta": link.identity.is_delta,
            "size": link.identity.size,
        }
        for link in ancestors.found
    ]
    missing = None if ancestors.missing is None else with_advice(ancestors.missing)
    return {"needs": needs, "missing": missing}


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    return ("drive", "size", "stored", "zero", *(["unchanged"] if "unchanged" in row else []), "compressed", "ratio")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    compressed = row["compressed"]
    return (
        printable(row["name"]),
        short(row["size"]),
        short(row["stored"]),
        f"{short(row['zero'])} ({percent(row['zero'], row['size'])})",
        *([f"{short(row['unchanged'])} ({percent(row['unchanged'], row['size'])})"] if "unchanged" in row else []),
        "-" if compressed is None else short(compressed),
        "-" if compressed is None else percent(compressed, row["stored"]),
    )


def make_table(facts: ArchiveFacts) -> Table:
    """The drives as a rich table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in _columns(_row(facts, facts.header.drives[0])):
        table.add_column(column, justify="left" if column == "drive" else "right")
    for drive in facts.header.drives:
        table.add_row(*map(Text, _cells(_row(facts, drive))))
    return table


def _print_table(facts: ArchiveFacts) -> None:
    from rich.console import Console

    Console().print(make_table(facts))


def _print_plain(rows: list[dict[str, Any]]) -> None:
    lines = [_columns(rows[0]), *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
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
