"""pybackup prune: remove archives by rules."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from pybackup.cli.command import Command
from pybackup.cli.elsewhere import history_place
from pybackup.cli.keep import keep_options, rules_of
from pybackup.cli.list import NAME, kind, when
from pybackup.cli.numbers import counted, short
from pybackup.cli.options import json_option, key_options, threads_option
from pybackup.cli.params import PlainPath, Whole
from pybackup.cli.printable import as_json as json_text
from pybackup.cli.printable import say
from pybackup.cli.progress import choose
from pybackup.cli.request import takes
from pybackup.cli.running import tell_report, threads_or_default, warn
from pybackup.cli.tables import Column, show_table
from pybackup.core.history.catalog import Catalog
from pybackup.core.history.plan import NEEDED_BY, Decision, Fate, Wishes
from pybackup.core.history.prune import MergeTools, Prune, Pruned
from pybackup.core.places.kinds import HistoryPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What was asked of `prune`."""

    place: HistoryPlace
    keep_within: float
    keep_last: int
    keep_hourly: int
    keep_daily: int
    keep_weekly: int
    keep_monthly: int
    keep_yearly: int
    dry_run: bool
    merge: bool
    ignored: Sequence[str]
    now: int | None
    threads: int | None
    quiet: bool
    as_json: bool


@click.command("prune", cls=Command, short_help="Remove archives by rules: so many days, weeks, months.")
@click.argument("place", type=PlainPath(history_place))
@keep_options()
@click.option("-n", "--dry-run", is_flag=True, help="Change nothing, and tell what would be done.")
@click.option(
    "--merge",
    is_flag=True,
    help="Where a kept delta needs archives that no rule keeps, make one full archive of it and these, read that, and"
    " remove them.",
)
@click.option(
    "--ignore",
    "ignored",
    multiple=True,
    metavar="NAME",
    help="Go on though this archive of PLACE cannot be read; it stays. May be given several times.",
)
@click.option(
    "--time",
    "now",
    type=Whole(0),
    default=None,
    show_default="now",
    metavar="SECONDS",
    help="The time, in seconds since 1970: later archives stay, and count for no rule.",
)
@key_options
@threads_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but failures.")
@json_option
@takes(_Request)
def command(request: _Request) -> int:
    """Remove archives from PLACE (a folder, s3://BUCKET/PREFIX or sftp://HOST/PATH) that no rule keeps.

    Archives whose names differ only by their own time are a series, and the rules hold for each series by itself. They
    are applied in this order: within, last, hourly, daily, weekly, monthly, yearly. Hours, days, weeks (from Monday),
    months and years are those of this machine's time zone. Those without an archive do not count, nor do those of which
    a rule before keeps one: --keep-daily 7 --keep-weekly 4 reach a week and then four more weeks back.

    What a kept archive needs is kept, too. The newest sound archive of a series is never removed, nor what is broken or
    not understood. Where an archive cannot be read, nothing is removed, for nobody knows what it needs. An archive that
    a backup is building on stays; in stores, where there are no locks, what was the newest within a day does.
    """
    prune = Prune(request.place, _wishes(request), _tools(request))
    pruned = prune.look() if request.dry_run else prune.run(_teller(request))
    if request.as_json:
        tell_report(json_text(as_dict(request.place, pruned, dry_run=request.dry_run)))
    elif not request.quiet:
        _print(pruned, dry_run=request.dry_run)
    if pruned.error is not None:
        raise pruned.error
    return 0


def _wishes(request: _Request) -> Wishes:
    now = time.time() if request.now is None else request.now
    return Wishes(rules=rules_of(request), now=now, merge=request.merge, ignored=frozenset(request.ignored))


def _tools(request: _Request) -> MergeTools | None:
    if not request.merge or request.dry_run:
        return None
    from pybackup.cli.merging import merge_tools

    return merge_tools(threads_or_default(request.threads), choose("auto", request.quiet))


def _teller(request: _Request) -> Any:
    if request.quiet or request.as_json:
        return lambda _: None
    return lambda told: warn([told], "note")


def as_dict(place: HistoryPlace, pruned: Pruned, *, dry_run: bool = False) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "place": str(place),
        "dry_run": dry_run,
        "archives": [_decision_as_dict(one, pruned) for one in pruned.decisions],
        "removed": 0 if dry_run else len(pruned.removed),
        "freed": 0 if dry_run else pruned.freed,
        "error": str(pruned.error) if pruned.error is not None else None,
    }


def _decision_as_dict(one: Decision, pruned: Pruned) -> dict[str, Any]:
    return {
        "name": one.entry.name,
        "series": one.series,
        "created": one.entry.created if one.entry.identity is not None else None,
        "size": one.entry.listed.size,
        "fate": one.fate.value,
        "reasons": list(one.reasons),
        "merged_into": pruned.merged.get(one.entry.name),
    }


_COLUMNS = (
    Column("archive", flexible=NAME),
    Column("made", spare=1),
    Column("kind", spare=2),
    Column("size", right=True),
    Column(""),
    Column("why", flexible=30),
)
_DONE = {Fate.KEEP: "keep", Fate.REMOVE: "removed", Fate.MERGE: "merged"}


def _print(pruned: Pruned, *, dry_run: bool) -> None:
    catalog = Catalog([one.entry for one in pruned.decisions])
    rows: dict[str, list[list[str]]] = {}
    for one in reversed(pruned.decisions):
        done = one.fate.value if dry_run else _DONE[one.fate]
        made = when(one.entry.created) if one.entry.identity is not None else "?"
        called = kind(catalog, one.entry) if one.entry.identity is not None else "?"
        row = [one.entry.name, made, called, short(one.entry.listed.size), done, ", ".join(one.reasons)]
        rows.setdefault(one.series or "", []).append(row)
    for number, name in enumerate(sorted(rows)):
        if number:
            click.echo()
        say(f"{name or 'what cannot be read'}:")
        show_table(_COLUMNS, rows[name])
    if rows:
        click.echo()
    say(summary(pruned, dry_run=dry_run))


def summary(pruned: Pruned, *, dry_run: bool = False) -> str:
    """What was done, in a line."""
    fates = Counter(one.fate for one in pruned.decisions)
    stay = [one for one in pruned.decisions if one.fate is not Fate.REMOVE]
    gone = [one.entry for one in pruned.decisions if one.fate is Fate.REMOVE]
    text = "would remove" if dry_run else "removed"
    text += f" {counted(len(gone), 'archive')} ({short(sum(one.listed.size for one in gone))})"
    if fates[Fate.MERGE]:
        text += f", {'would merge' if dry_run else 'merged'} {counted(fates[Fate.MERGE], 'chain')}"
    for_others = [one for one in stay if one.fate is Fate.KEEP and all(map(_is_need, one.reasons))]
    left = sum(one.entry.listed.size for one in stay if one.entry.name not in pruned.merged) + pruned.written
    text += f"; {counted(len(stay), 'archive')} {'stays' if len(stay) == 1 else 'stay'} ({short(left)})"
    return f"{text}, {len(for_others)} of them only because others need them" if for_others else text


def _is_need(reason: str) -> bool:
    return reason.startswith(NEEDED_BY)
