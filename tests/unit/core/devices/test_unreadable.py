"""What could not be read is listed in order, whatever order it was found in, and in bounded memory."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.cli.unreadable import MOST_LINES, unreadable_lines
from pybackup.core.devices.unreadable import MOST_LISTED, LostRange, LostRanges


def listed(*found: tuple[str, int, int]) -> LostRanges:
    ranges = LostRanges()
    for one in found:
        ranges.add(*one)
    return ranges


def test_neighbours_become_one_and_drives_stay_apart() -> None:
    ranges = listed(("b", 0, 5), ("a", 30, 10), ("a", 10, 10), ("a", 20, 10))
    assert list(ranges) == [LostRange("a", 10, 30, 30), LostRange("b", 0, 5, 5)]
    assert (len(ranges), ranges.lost) == (2, 35)
    ranges = listed(("a", 0, 5), ("b", 5, 5), ("b", 11, 1))
    assert ranges.as_json() == [
        {"drive": "a", "offset": 0, "length": 5},
        {"drive": "b", "offset": 5, "length": 5},
        {"drive": "b", "offset": 11, "length": 1},
    ]
    assert not listed()
    assert list(listed()) == []


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60)), unique=True))
def test_all_is_listed_and_nothing_else(places: list[tuple[str, int]]) -> None:
    ranges = listed(*((drive, 512 * at, 512) for drive, at in places))
    found = {(one.drive, at // 512) for one in ranges for at in range(one.offset, one.offset + one.length, 512)}
    assert found == set(places)
    assert ranges.lost == 512 * len(places)
    assert list(LostRanges.from_json(json.loads(json.dumps(ranges.as_json())))) == list(ranges)


def test_bad_places_without_end_take_bounded_room() -> None:
    offsets = [at * 1_000_000 for at in range(30_000)]
    random.Random(1).shuffle(offsets)
    ranges = listed(*(("drive-scsi0", at, 4096) for at in offsets))
    text = json.dumps(ranges.as_json())
    assert MOST_LISTED // 8 < len(text) <= MOST_LISTED
    assert ranges.lost == 30_000 * 4096 == sum(one.lost for one in ranges)
    coarse = [one for one in ranges if one.lost != one.length]
    assert coarse and '"unreadable": ' in text
    # Each place lies in one of the listed ones, which do not overlap.
    starts, end = sorted(offsets), 0
    for one in ranges:
        assert one.offset >= end
        end = one.offset + one.length
        while starts and one.offset <= starts[0] < end:
            starts.pop(0)
    assert not starts


def test_a_list_that_no_backup_makes_is_taken_as_it_is() -> None:
    told = [{"drive": f"d{number}", "offset": 0, "length": 1} for number in range(20_000)]
    assert len(LostRanges.from_json(told)) == 20_000


def test_few_places_have_a_line_each_and_many_are_summed_up() -> None:
    few = listed(*(("d", at * 10_000, 512) for at in range(MOST_LINES)))
    lines = list(unreadable_lines(few, "are zeros", "info"))
    assert lines[0] == "drive d: 512 bytes at 0 are zeros"
    assert len(lines) == MOST_LINES
    few.add("e\x1b[2J", 5, 7)
    lines = list(unreadable_lines(few, "are zeros", "info"))
    assert lines[-1] == "in all 5127 bytes in 11 places are zeros; info lists them"
    assert len(lines) == MOST_LINES + 1
    (line,) = unreadable_lines(LostRanges([LostRange("e\x1b[2J", 5, 70, 7)]), "are zeros", "info")
    assert line.isprintable() and line.endswith("[2J: 7 of the 70 bytes at 5 are zeros")


@pytest.mark.parametrize("content", [[{"drive": "a"}], [1], {"a": 1}, [{"drive": "a", "offset": "x", "length": 1}]])
def test_a_list_that_is_none(content: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        LostRanges.from_json(content)
