"""pybackup list: which archives there are in a place."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import click

from pybackup.cli.command import Command
from pybackup.cli.elsewhere import history_place
from pybackup.cli.numbers import counted, short
from pybackup.cli.options import json_option, key_options
from pybackup.cli.params import PlainPath
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.tables import Column, bar, show_table
from pybackup.core.errors import ExitCode
from pybackup.core.history.catalog import Catalog, Entry, read_catalog
from pybackup.core.history.series import series_of
from pybackup.core.places.kinds import HistoryPlace

BAR = 12
"""Characters of the longest bar."""
NAME = 255
"""Characters of the longest name: one is cut in two only when all else that can be is left out."""
LAST_TIME = 253402300799
"""The last second that a calendar has."""


@click.command("list", cls=Command, short_help="Tell what archives there are, and which need which.")
@click.argument("place", type=PlainPath(history_place))
@key_options
@json_option
def command(place: HistoryPlace, as_json: bool) -> int:
    """Tell what archives there are in PLACE: a folder, s3://BUCKET/PREFIX or sftp://HOST/PATH.

    Archives whose names differ only by their own time are a series. Of each there is told when it was made; whether it
    is a full one or a delta, and the number of that in its chain; its size in PLACE, also as a bar; its drives, and
    their size; how many others need it; and whether it is broken, for it ends too early, or a parent is missing.

    Only their headers and indexes are read: whether all of them is sound, `pybackup verify` tells. Of an encrypted one
    for which no identity is given, only what its header tells everybody; with one, that is checked. The exit code is 4
    where one is broken, or cannot be read, and 7 where a key is all that lacks.
    """
    catalog = read_catalog(place)
    series = series_of(catalog)
    if as_json:
        print(json_text(_as_dict(place, catalog, series)))
    else:
        _print(place, catalog, series)
    return _code(catalog)


def _code(catalog: Catalog) -> int:
    """What is wrong, of what is not another program's affair; less so if it is only a key that lacks."""
    trouble = [entry for entry in catalog.entries if not entry.is_foreign and catalog.broken(entry) is not None]
    if not all(entry.is_sealed for entry in trouble):
        return int(ExitCode.ARCHIVE)
    return int(ExitCode.NO_KEY) if trouble else 0


# -- JSON --


def _as_dict(place: HistoryPlace, catalog: Catalog, series: Mapping[str, str]) -> dict[str, Any]:
    needed = catalog.needed_by()
    readable = [entry for entry in catalog.entries if entry.identity is not None]
    return {
        "place": str(place),
        "archives": [archive_as_dict(catalog, entry, series[entry.name], needed[entry.name]) for entry in readable],
        "unreadable": [
            {"name": entry.name, "size": entry.listed.size, "why": entry.problem, "foreign": entry.is_foreign}
            for entry in catalog.entries
            if entry.identity is None
        ],
        "series": [_sums(catalog, name, entries) for name, entries in by_series(catalog, series).items()],
    }


def archive_as_dict(catalog: Catalog, entry: Entry, series: str, needed_by: int) -> dict[str, Any]:
    """What is known of an archive."""
    identity = entry.identity
    assert identity is not None
    parent = catalog.parent_of(entry)
    told = identity.about.get("drives")
    about_drives = {one.get("name"): one for one in told if isinstance(one, dict)} if isinstance(told, list) else {}
    return {
        "archive": str(entry.listed.place),
        "name": entry.name,
        "series": series,
        "uuid": str(uuid.UUID(bytes=identity.uuid)),
        "created": identity.created,
        "modified": entry.listed.modified,
        "size": entry.listed.size,
        "index": entry.has_index,
        "delta": identity.is_delta,
        "parent": str(uuid.UUID(bytes=identity.parent.uuid)) if identity.parent is not None else None,
        "parent_name": parent.name if parent is not None else identity.likely_parent if identity.parent else None,
        "chain": chain_length(catalog, entry),
        "needed_by": needed_by,
        "broken": catalog.broken(entry),
        "public_facts_only": identity.is_public,
        "drives": [
            {
                "name": drive.name,
                "size": drive.size,
                "stored": about_drives.get(drive.name, {}).get("stored_bytes"),
                "way": about_drives.get(drive.name, {}).get("way"),
            }
            for drive in identity.drives
        ],
    }


def chain_length(catalog: Catalog, entry: Entry) -> int:
    """How many deltas must be read for it; of a broken one as many as it told."""
    assert entry.identity is not None
    if catalog.broken(entry) is None:
        return len(catalog.chain_of(entry)) - 1
    return entry.identity.chain


def by_series(catalog: Catalog, series: Mapping[str, str]) -> dict[str, list[Entry]]:
    """The archives of each series, the oldest first."""
    found: dict[str, list[Entry]] = {}
    for entry in reversed(catalog.entries):
        if entry.identity is not None:
            found.setdefault(series[entry.name], []).append(entry)
    return dict(sorted(found.items()))


def _sums(catalog: Catalog, name: str, entries: Sequence[Entry]) -> dict[str, Any]:
    sound = [entry for entry in entries if catalog.broken(entry) is None]
    return {
        "series": name,
        "archives": len(entries),
        "backups": len({entry.backup for entry in sound}),
        "broken": len(entries) - len(sound),
        "size": sum(entry.listed.size for entry in entries),
        "oldest": sound[0].created if sound else None,
        "newest": sound[-1].created if sound else None,
    }


# -- text --


def _print(place: HistoryPlace, catalog: Catalog, series: Mapping[str, str]) -> None:
    needed = catalog.needed_by()
    found = by_series(catalog, series)
    for number, (name, entries) in enumerate(found.items()):
        if number:
            click.echo()
        say(heading(catalog, name, entries))
        _print_series(catalog, entries, needed)
        for entry in entries:
            if (why := catalog.broken(entry)) is not None:
                say(f"{entry.name} is broken: {why}")
    for entry in catalog.entries:
        if entry.identity is None:
            say(entry.problem)
    if not catalog.entries:
        say(f"{place}: no archives")
    elif len(found) > 1:
        size = sum(entry.listed.size for entry in catalog.entries)
        click.echo()
        say(f"{place}: {counted(len(catalog.entries), 'archive')} of {len(found)} series, {short(size)}")


def heading(catalog: Catalog, name: str, entries: Sequence[Entry]) -> str:
    """A series, how many there are, what they take, and how far back one can go."""
    sums = _sums(catalog, name, entries)
    text = f"{name}: {counted(sums['archives'], 'archive')}, {short(sums['size'])}"
    if sums["oldest"] is not None:
        text += f", back to {when(sums['oldest'])}"
        if days := (sums["newest"] - sums["oldest"]) // 86400:
            text += f" ({counted(days, 'day')} before the newest)"
    return text


def when(created: int) -> str:
    """A time, as clocks here show it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(min(created, LAST_TIME)))


_COLUMNS = (
    Column("archive", flexible=NAME),
    Column("made"),
    Column("kind"),
    Column("size", right=True),
    Column("", spare=3),
    Column("drives", flexible=12, spare=2),
    Column("disks", right=True, spare=1),
    Column("needed by", right=True, spare=4),
)


def _print_series(catalog: Catalog, entries: Sequence[Entry], needed: Mapping[str, int]) -> None:
    largest = max(entry.listed.size for entry in entries)
    show_table(_COLUMNS, [_row(catalog, entry, needed[entry.name], largest) for entry in entries])


def _row(catalog: Catalog, entry: Entry, needed_by: int, largest: int) -> list[str]:
    assert entry.identity is not None
    return [
        entry.name,
        when(entry.created),
        kind(catalog, entry),
        short(entry.listed.size),
        bar(entry.listed.size, largest, BAR).ljust(BAR),
        " ".join(drive.name for drive in entry.identity.drives),
        short(sum(drive.size for drive in entry.identity.drives)),
        str(needed_by) if needed_by else "-",
    ]


def kind(catalog: Catalog, entry: Entry) -> str:
    """Full, or a delta with its number in the chain; and what is wrong in a word."""
    text = f"delta {chain_length(catalog, entry)}" if entry.is_delta else "full"
    if catalog.broken(entry) is not None:
        return f"{text}, broken"
    if entry.identity is not None and entry.identity.is_public:
        return f"{text}, encrypted"
    return text if entry.has_index else f"{text}, no index"
