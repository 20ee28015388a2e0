"""Which backups of a series rules keep. Nothing is read or opened here.

The rules are those of Proxmox Backup Server and of borg, in this order: within, last, hourly, daily, weekly, monthly,
yearly. Each keeps the newest backup of so many periods. Periods without a backup do not count; nor do periods of which
a rule before has kept one. So seven daily and four weekly backups reach a week and four weeks back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How many to keep of each; ``within``: seconds before the newest backup in which all are kept."""

    within: float = 0
    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether they would keep nothing."""
        return not any((self.within, self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly))


Period = Callable[[datetime], tuple[object, str]]
"""What tells a period from all others, and how it is called."""


def _hour(at: datetime) -> tuple[object, str]:
    # An hour that comes twice, when clocks are set back, is two hours.
    return (at.date(), at.hour, at.utcoffset()), f"{at:%Y-%m-%d %H}h"


def _day(at: datetime) -> tuple[object, str]:
    return at.date(), f"{at:%Y-%m-%d}"


def _week(at: datetime) -> tuple[object, str]:
    year, week, _ = at.isocalendar()
    return (year, week), f"{year}-W{week:02}"


def _month(at: datetime) -> tuple[object, str]:
    return (at.year, at.month), f"{at:%Y-%m}"


def _year(at: datetime) -> tuple[object, str]:
    return at.year, f"{at:%Y}"


_PERIODS: tuple[tuple[str, Period], ...] = (
    ("hourly", _hour),
    ("daily", _day),
    ("weekly", _week),
    ("monthly", _month),
    ("yearly", _year),
)


def reasons_to_keep(created: Sequence[int], rules: Rules, now: float, zone: tzinfo | None = None) -> list[str | None]:
    """For each backup why it is kept, or None.

    ``created``: seconds since 1970, in any order; of two of the same second the first counts as newer. ``now``: what is
    later than that is kept, and counts for nothing, for a clock was wrong. ``zone``: in which hours, days, weeks (of
    ISO 8601, which begin on Monday), months and years begin; None for this machine's.
    """
    found: list[str | None] = ["later than now" if one > now else None for one in created]
    past = sorted((number for number, one in enumerate(created) if one <= now), key=lambda number: -created[number])
    if not past:
        return found
    newest = created[past[0]]
    for number in past:
        if rules.within and created[number] >= newest - rules.within:
            found[number] = "within"
    _keep_last(found, past, rules.last)
    times = {number: _time(created[number], zone) for number in past}
    for name, period in _PERIODS:
        _keep_periods(found, [(number, *period(times[number])) for number in past], name, getattr(rules, name))
    return found


def _time(created: int, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(created, zone) if zone else datetime.fromtimestamp(created).astimezone()


def _keep_last(found: list[str | None], past: Sequence[int], count: int) -> None:
    kept = 0
    for number in past:
        if kept == count:
            return
        if found[number] is None:
            kept += 1
            found[number] = f"last {kept} of {count}"


def _keep_periods(found: list[str | None], past: Sequence[tuple[int, object, str]], rule: str, count: int) -> None:
    """``past``: number of the backup, its period, and how that is called; newest first."""
    seen = {period for number, period, _ in past if found[number] is not None}
    kept = 0
    for number, period, called in past:
        if period in seen:
            continue
        if kept == count:
            return
        seen.add(period)
        kept += 1
        found[number] = f"{rule} {called}"
