"""The rules of retention, by cases that were worked out by hand."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.core.history.retention import Rules, reasons_to_keep

BERLIN = ZoneInfo("Europe/Berlin")
HOUR, DAY = 3600, 86400


def at(text: str, zone: object = UTC) -> int:
    found = datetime.fromisoformat(text)
    return int((found if found.tzinfo else found.replace(tzinfo=zone)).timestamp())  # type: ignore[arg-type]


def kept(times: str, rules: Rules, *, zone: object = UTC, now: str = "2100-01-01") -> list[str]:
    """Of times, separated by commas, those that are kept, with the reason."""
    names = [one.strip() for one in times.split(",")]
    found = reasons_to_keep([at(one, zone) for one in names], rules, at(now), zone)  # type: ignore[arg-type]
    return [f"{name}: {reason}" for name, reason in zip(names, found, strict=True) if reason is not None]


def test_last_counts_backups() -> None:
    times = "2026-01-01, 2026-01-02, 2026-01-03, 2026-01-04"
    assert kept(times, Rules(last=2)) == ["2026-01-03: last 2 of 2", "2026-01-04: last 1 of 2"]
    assert len(kept(times, Rules(last=9))) == 4


def test_of_each_day_the_newest_is_kept_and_days_without_one_do_not_count() -> None:
    times = "2026-01-01T02, 2026-01-01T14, 2026-01-05T02, 2026-01-05T23, 2026-01-09T02"
    assert kept(times, Rules(daily=3)) == [
        "2026-01-01T14: daily 2026-01-01",
        "2026-01-05T23: daily 2026-01-05",
        "2026-01-09T02: daily 2026-01-09",
    ]
    assert kept(times, Rules(daily=1)) == ["2026-01-09T02: daily 2026-01-09"]


def test_hours() -> None:
    times = "2026-01-01T02:00, 2026-01-01T02:59, 2026-01-01T03:00, 2026-01-02T03:00"
    assert kept(times, Rules(hourly=3)) == [
        "2026-01-01T02:59: hourly 2026-01-01 02h",
        "2026-01-01T03:00: hourly 2026-01-01 03h",
        "2026-01-02T03:00: hourly 2026-01-02 03h",
    ]


def test_weeks_are_those_of_iso_8601() -> None:
    # 2026-12-28 is a Monday of week 53, which ends on Sunday 2027-01-03; a year has 52 weeks or 53.
    times = "2026-12-27, 2026-12-28, 2027-01-01, 2027-01-03, 2027-01-04"
    assert kept(times, Rules(weekly=3)) == [
        "2026-12-27: weekly 2026-W52",
        "2027-01-03: weekly 2026-W53",
        "2027-01-04: weekly 2027-W01",
    ]
    # The first days of 2021 belong to the last week of 2020, and 2024-12-30 to the first of 2025.
    assert kept("2021-01-03, 2021-01-04", Rules(weekly=2)) == [
        "2021-01-03: weekly 2020-W53",
        "2021-01-04: weekly 2021-W01",
    ]
    assert kept("2024-12-29, 2024-12-30, 2025-01-05", Rules(weekly=2)) == [
        "2024-12-29: weekly 2024-W52",
        "2025-01-05: weekly 2025-W01",
    ]


def test_months_and_years_with_a_leap_day() -> None:
    times = "2023-02-28, 2024-02-28, 2024-02-29, 2024-03-01, 2024-12-31"
    assert kept(times, Rules(monthly=9)) == [
        "2023-02-28: monthly 2023-02",
        "2024-02-29: monthly 2024-02",
        "2024-03-01: monthly 2024-03",
        "2024-12-31: monthly 2024-12",
    ]
    assert kept(times, Rules(yearly=2)) == ["2023-02-28: yearly 2023", "2024-12-31: yearly 2024"]
    assert kept(times, Rules(daily=2)) == ["2024-03-01: daily 2024-03-01", "2024-12-31: daily 2024-12-31"]


def test_an_hour_that_comes_twice_is_two_and_one_that_is_left_out_is_none() -> None:
    # Clocks were set back at 03:00 on 2026-10-25: 02:30 came twice, in summer time and an hour later.
    twice = "2026-10-25T02:30+02:00, 2026-10-25T02:30+01:00, 2026-10-25T03:30+01:00"
    assert [one.rpartition(": ")[2] for one in kept(twice, Rules(hourly=3), zone=BERLIN)] == [
        "hourly 2026-10-25 02h",
        "hourly 2026-10-25 02h",
        "hourly 2026-10-25 03h",
    ]
    # And put forward at 02:00 on 2026-03-29.
    forward = "2026-03-29T01:59+01:00, 2026-03-29T03:00+02:00"
    assert len(kept(forward, Rules(hourly=2), zone=BERLIN)) == 2
    assert at("2026-03-29T03:00+02:00") - at("2026-03-29T01:59+01:00") == 60


def test_a_day_begins_at_midnight_of_the_zone_also_when_it_has_23_or_25_hours() -> None:
    # In UTC both are of the same day, in Berlin not.
    times = "2026-07-01T21:59+00:00, 2026-07-01T22:00+00:00"
    assert len(kept(times, Rules(daily=2), zone=UTC)) == 1
    assert len(kept(times, Rules(daily=2), zone=BERLIN)) == 2
    long = "2026-10-25T00:00+02:00, 2026-10-25T23:59+01:00, 2026-10-26T00:00+01:00"
    assert [one.rpartition(": ")[2] for one in kept(long, Rules(daily=2), zone=BERLIN)] == [
        "daily 2026-10-25",
        "daily 2026-10-26",
    ]


def test_a_rule_counts_no_period_of_which_one_before_has_kept_something() -> None:
    # As Proxmox Backup Server and borg count: seven days, and then four more weeks.
    days = [at("2026-11-01") + number * DAY for number in range(-60, 1)]
    found = reasons_to_keep(days, Rules(daily=7, weekly=4), at("2100-01-01"), UTC)
    told = [
        (datetime.fromtimestamp(one, UTC).strftime("%m-%d"), why) for one, why in zip(days, found, strict=True) if why
    ]
    assert told == [
        ("10-04", "weekly 2026-W40"),
        ("10-11", "weekly 2026-W41"),
        ("10-18", "weekly 2026-W42"),
        ("10-25", "weekly 2026-W43"),
        *[(f"10-{day}", f"daily 2026-10-{day}") for day in range(26, 32)],
        ("11-01", "daily 2026-11-01"),
    ]


def test_last_goes_before_days() -> None:
    times = "2026-01-01T02, 2026-01-02T02, 2026-01-03T02, 2026-01-03T14"
    assert kept(times, Rules(last=1, daily=1)) == ["2026-01-02T02: daily 2026-01-02", "2026-01-03T14: last 1 of 1"]


def test_within_reaches_back_from_the_newest() -> None:
    times = "2026-01-01T00:00, 2026-01-01T00:01, 2026-01-03T00:01"
    assert kept(times, Rules(within=2 * DAY)) == ["2026-01-01T00:01: within", "2026-01-03T00:01: within"]
    # However long ago that was.
    assert len(kept(times, Rules(within=2 * DAY), now="2090-01-01")) == 2
    # And what it keeps does not count for the others.
    assert kept(times, Rules(within=60, last=1)) == ["2026-01-01T00:01: last 1 of 1", "2026-01-03T00:01: within"]


def test_what_is_later_than_now_is_kept_and_counts_for_nothing() -> None:
    times = "2026-01-01, 2026-01-02, 2031-01-01"
    assert kept(times, Rules(last=1), now="2026-01-02") == ["2026-01-02: last 1 of 1", "2031-01-01: later than now"]
    assert kept("2031-01-01", Rules(within=DAY), now="2026-01-02") == ["2031-01-01: later than now"]
    # No calendar reaches to where a header's number of seconds does.
    assert reasons_to_keep([2**63 - 1], Rules(yearly=1), 1e9, UTC) == ["later than now"]


def test_of_two_of_the_same_second_the_first_is_newer() -> None:
    assert reasons_to_keep([1000, 1000], Rules(last=1), 2000, UTC) == ["last 1 of 1", None]
    assert reasons_to_keep([1000, 1000], Rules(daily=2), 2000, UTC) == ["daily 1970-01-01", None]


def test_no_backups_and_no_rules() -> None:
    assert reasons_to_keep([], Rules(daily=1), 0) == []
    assert Rules().is_empty and not Rules(within=1).is_empty and not Rules(yearly=1).is_empty
    assert reasons_to_keep([1, 2], Rules(), 10, UTC) == [None, None]


@pytest.mark.parametrize("zone", [UTC, BERLIN, ZoneInfo("America/St_Johns"), ZoneInfo("Pacific/Apia")])
def test_nightly_pruning_keeps_as_many_as_the_rules_say(zone: ZoneInfo) -> None:
    """A year of nights, pruned after each: in the end there is what the rules name, and no less."""
    rules = Rules(last=2, daily=5, weekly=3, monthly=4, yearly=1)
    have: list[int] = []
    for number in range(800):
        have.append(at("2024-01-01T03", zone) + number * DAY)
        found = reasons_to_keep(have, rules, have[-1], zone)
        have = [one for one, why in zip(have, found, strict=True) if why]
    assert len(have) == 2 + 5 + 3 + 4 + 1


TIMES = st.lists(st.integers(0, 2_000_000_000), max_size=40)
RULES = st.builds(
    Rules,
    within=st.sampled_from([0, 1, DAY, 90 * DAY]),
    last=st.integers(0, 5),
    hourly=st.integers(0, 5),
    daily=st.integers(0, 5),
    weekly=st.integers(0, 5),
    monthly=st.integers(0, 5),
    yearly=st.integers(0, 5),
)


@settings(deadline=None)
@given(TIMES, RULES, st.randoms(use_true_random=False))
def test_the_newest_is_kept_and_order_does_not_matter(times: list[int], rules: Rules, chance: random.Random) -> None:
    now = 1_500_000_000
    found = reasons_to_keep(times, rules, now, BERLIN)
    past = [one for one in times if one <= now]
    kept = sorted(one for one, why in zip(times, found, strict=True) if why)
    if past and not rules.is_empty:
        assert max(past) in kept
    assert len([one for one in kept if one <= now]) <= len(past)
    shuffled = times[:]
    chance.shuffle(shuffled)
    again = reasons_to_keep(shuffled, rules, now, BERLIN)
    assert sorted(one for one, why in zip(shuffled, again, strict=True) if why) == kept


@settings(deadline=None)
@given(TIMES, RULES)
def test_who_prunes_twice_removes_nothing_more(times: list[int], rules: Rules) -> None:
    now = 1_500_000_000
    found = reasons_to_keep(times, rules, now, BERLIN)
    left = [one for one, why in zip(times, found, strict=True) if why]
    assert None not in reasons_to_keep(left, rules, now, BERLIN)
