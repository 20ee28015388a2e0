"""The rules by which archives are kept, as options: of `prune`, and of `run`, which prunes what it has added to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import click

from pybackup.cli.options import all_of
from pybackup.cli.params import Duration, Whole
from pybackup.core.history.retention import Rules

MOST = 100_000
_PERIODS = {"hourly": "hours", "daily": "days", "weekly": "weeks", "monthly": "months", "yearly": "years"}
F = TypeVar("F", bound=Callable[..., object])


class Keeping(Protocol):
    """The fields of a request that has keep_options()."""

    @property
    def keep_within(self) -> float:
        """Seconds."""
        ...

    @property
    def keep_last(self) -> int:
        """How many."""
        ...

    @property
    def keep_hourly(self) -> int:
        """How many."""
        ...

    @property
    def keep_daily(self) -> int:
        """How many."""
        ...

    @property
    def keep_weekly(self) -> int:
        """How many."""
        ...

    @property
    def keep_monthly(self) -> int:
        """How many."""
        ...

    @property
    def keep_yearly(self) -> int:
        """How many."""
        ...


def keep_options(begin: str = "") -> Callable[[F], F]:
    """The options; ``begin`` stands before what the first one says."""
    return all_of(
        click.option(
            "--keep-within",
            type=Duration(),
            default="0",
            metavar="DURATION",
            help=f"{begin}Keep all that were made within DURATION before the newest, for example 30d.",
        ),
        click.option("--keep-last", type=Whole(0, MOST), default=0, metavar="N", help="Keep the last N."),
        *(_of_periods(name, periods) for name, periods in _PERIODS.items()),
    )


def _of_periods(name: str, periods: str) -> Callable[[F], F]:
    return click.option(
        f"--keep-{name}",
        type=Whole(0, MOST),
        default=0,
        metavar="N",
        help=f"Keep the newest of each of the last N {periods} that have one.",
    )


def rules_of(request: Keeping) -> Rules:
    """What was asked for."""
    return Rules(
        within=request.keep_within,
        last=request.keep_last,
        hourly=request.keep_hourly,
        daily=request.keep_daily,
        weekly=request.keep_weekly,
        monthly=request.keep_monthly,
        yearly=request.keep_yearly,
    )
