"""What could not be read of the disks, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from pybackup.cli.names import printable
from pybackup.core.devices.unreadable import LostRange, LostRanges

MOST_LINES = 10
"""Places that have a line each; more of them are summed up."""


def unreadable_lines(ranges: LostRanges, ending: str, where: str) -> Iterator[str]:
    """A line for each place, where these are few, and what they amount to; ``where`` says what lists them all."""
    count = len(ranges)
    for one in islice(ranges, MOST_LINES):
        yield f"drive {printable(one.drive)}: {_share(one)} at {one.offset} {ending}"
    if count > MOST_LINES:
        yield f"in all {ranges.lost} bytes in {count} places {ending}; {where} lists them"


def archive_lines(found: Any) -> Iterator[str]:
    """The same of what the facts of an archive list as unreadable; ``found`` is their JSON, whatever it holds."""
    try:
        ranges = LostRanges.from_json(found or ())
    except (KeyError, TypeError, ValueError, AttributeError):
        yield "what was unreadable when it was saved is told in a way that is not known; --json shows it"
        return
    yield from unreadable_lines(ranges, "could not be read when it was saved and are zeros here", "--json")


def _share(one: LostRange) -> str:
    return f"{one.lost} bytes" if one.lost == one.length else f"{one.lost} of the {one.length} bytes"
