"""Which archives are backups of the same, night after night.

A series are archives whose names differ only by what tells a time or a uuid in them. What is not clearly the same is
another series, for of two series more is kept than of one. So neither a parent nor a copy belongs to a series by what
it is: of an image from which many machines were cloned all are children; and a night with a name of its own has a
reason. Nor may it depend on what else is there: when archives go, no two series must become one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from .catalog import Catalog

MERGED = ".merged"
"""Stands in the name of a merged archive before the suffixes."""
_DATE = r"(?:19|20)\d\d(?P<s>[-_.]?)(?:0[1-9]|1[0-2])(?:(?P=s)(?:0[1-9]|[12]\d|3[01]))?(?!\d{1,3}(?!\d))"
_CLOCK = r"(?:[T_. @-]{0,2}(?:[01]\d|2[0-4])[-_:.h]?[0-5]\d(?:[-_:.m]?[0-6]\d)?s?)?"
_ZONE = r"(?:Z|[+-]\d\d:?\d\d)?"
_WEEK = r"(?:19|20)\d\d-?W[0-5]\d(?:-?[1-7])?"
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_TIME = re.compile(
    rf"(?<![0-9A-Fa-f]){_UUID}(?![0-9A-Fa-f])|(?<!\d)(?:{_WEEK}|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    rf"[T_. @-]?(?:[01]\d|2[0-4])[0-5]\d(?:[0-6]\d)?{_ZONE}|{_DATE}{_CLOCK}{_ZONE})(?!\d)"
)
"""A uuid, an ISO week, or a date that may be followed by a time of day, in the ways in which they stand in names."""
_DIGITS = re.compile(r"(?<!\d)\d+(?!\d)")
_SHORT_FORMS = ("%s", "%y%m%d", "%y%m%d%H%M", "%y%m%d%H%M%S", "%Y%j", "%Y")
"""Digits that are a time only if they tell the archive's own."""


def pattern_of(name: str, created: int) -> str:
    """A name with a * for each time and uuid in it; ``created`` in seconds since 1970."""
    plain = re.sub(rf"{re.escape(MERGED)}(?=\.|$)", "", name)
    plain = _TIME.sub("*", plain)
    own = _own_times(created)
    return _DIGITS.sub(lambda found: "*" if found[0] in own else found[0], plain)


def _own_times(created: int) -> frozenset[str]:
    try:
        here = datetime.fromtimestamp(created).astimezone()
        times = (here, here.astimezone(UTC))
    except (ValueError, OverflowError, OSError):
        return frozenset({str(created)})
    return frozenset({str(created), *(at.strftime(form) for at in times for form in _SHORT_FORMS[1:])})


def series_of(catalog: Catalog) -> Mapping[str, str]:
    """By the name of each archive the name of its series. What cannot be read has none."""
    return {
        entry.name: pattern_of(entry.name, entry.created) for entry in catalog.entries if entry.identity is not None
    }
