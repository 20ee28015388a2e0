"""Which archives are backups of the same, night after night.

A series are archives whose names differ only by what tells their own time or uuid in them: a month, a week or a uuid
may as well be a part of a machine's name. What is not clearly the same is another series, for of two series more is
kept than of one. So neither a parent nor a copy belongs to a series by what
it is: of an image from which many machines were cloned all are children; and a night with a name of its own has a
reason. Nor may it depend on what else is there: when archives go, no two series must become one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from .catalog import Catalog

MERGED = ".merged"
"""Stands in the name of a merged archive before the suffixes."""
_DATE = (
    r"(?P<year>(?:19|20)\d\d)(?P<s>[-_.]?)(?P<month>0[1-9]|1[0-2])(?:(?P=s)(?P<day>0[1-9]|[12]\d|3[01]))?"
    r"(?!\d{1,3}(?!\d))"
)
_CLOCK = r"(?:[T_. @-]{0,2}(?:[01]\d|2[0-4])[-_:.h]?[0-5]\d(?:[-_:.m]?[0-6]\d)?s?)?"
_ZONE = r"(?:Z|[+-]\d\d:?\d\d)?"
_WEEK = r"(?P<week_year>(?:19|20)\d\d)-?W(?P<week>[0-5]\d)(?:-?[1-7])?"
_UUID = re.compile(r"(?<![0-9A-Fa-f])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![0-9A-Fa-f])")
_TIME = re.compile(
    rf"(?<!\d)(?:{_WEEK}|(?P<compact>(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))"
    rf"[T_. @-]?(?:[01]\d|2[0-4])[0-5]\d(?:[0-6]\d)?{_ZONE}|{_DATE}{_CLOCK}{_ZONE})(?!\d)"
)
"""An ISO week, or a date that may be followed by a time of day, in the ways in which they stand in names."""
_DIGITS = re.compile(r"(?<!\d)\d+(?!\d)")
_SHORT_FORMS = ("%y%m%d", "%y%m%d%H%M", "%y%m%d%H%M%S", "%Y%j")
"""Digits that are a time only if they tell the archive's own; and so are its seconds since 1970, and else its year."""
_NEAR_DAY, _NEAR = timedelta(days=31), timedelta(days=2)
"""How far a day, and a month or a week, in an archive's name may be from when it was made: farther ones, as in
win2019-01 or 20010101, tell machines apart."""


def pattern_of(name: str, created: int, uuid: bytes | None) -> str:
    """A name with a * for each time and uuid in it that are the archive's own; ``created`` in seconds since 1970.

    ``uuid``: None where it is not known, and any may be its own.
    """
    plain = re.sub(rf"{re.escape(MERGED)}(?=\.|$)", "", name)
    uuids = None if uuid is None else (str(UUID(bytes=uuid)),)
    plain = _UUID.sub(lambda found: "*" if uuids is None or found[0].lower() in uuids else found[0], plain)
    here = _own_time(created)
    if here is None:
        return _without_digits(plain, {str(created)})
    for is_day in (True, False):
        plain, was_there = _without_times(plain, here, is_day=is_day)
        if was_there:
            break
    forms = _SHORT_FORMS if was_there else (*_SHORT_FORMS, "%Y")
    own = {at.strftime(form) for at in (here, here.astimezone(UTC)) for form in forms}
    return _without_digits(plain, {str(created), *own})


def _own_time(created: int) -> datetime | None:
    try:
        found = datetime.fromtimestamp(created).astimezone()
        found.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return found


def _without_digits(plain: str, own: Collection[str]) -> str:
    return _DIGITS.sub(lambda found: "*" if found[0] in own else found[0], plain)


def _without_times(plain: str, here: datetime, *, is_day: bool) -> tuple[str, bool]:
    """With a * for all that tell a day, or else a month or week, about when the archive was made; whether any did."""
    parts, taken, at = list[str](), 0, 0
    while (found := _TIME.search(plain, at)) is not None:
        if _tells(found, here.date(), is_day=is_day):
            parts.extend((plain[taken : found.start()], "*"))
            taken = at = found.end()
        else:
            at = found.start() + 1  # in what is no time of this archive another one may begin
    return "".join((*parts, plain[taken:])), bool(parts)


def _tells(found: re.Match[str], here: date, *, is_day: bool) -> bool:
    day = found["compact"] or (found["day"] and found["year"] + found["month"] + found["day"])
    if bool(day) != is_day:
        return False
    try:
        if day:
            return abs(datetime.strptime(day, "%Y%m%d").date() - here) <= _NEAR_DAY
        if found["week"]:
            first = date.fromisocalendar(int(found["week_year"]), int(found["week"]), 1)
            last = first + timedelta(days=6)
        else:
            first = date(int(found["year"]), int(found["month"]), 1)
            last = first + timedelta(days=30)
    except ValueError:
        return False
    return first - _NEAR <= here <= last + _NEAR


def series_of(catalog: Catalog) -> Mapping[str, str]:
    """By the name of each archive the name of its series. What cannot be read has none."""
    return {
        entry.name: pattern_of(entry.name, entry.created, entry.identity.uuid)
        for entry in catalog.entries
        if entry.identity is not None
    }
