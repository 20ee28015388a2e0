"""What could not be read is listed in order, whatever order it was found in."""

from __future__ import annotations

from pybackup.core.unreadable import LostRange, joined


def test_neighbours_become_one_and_drives_stay_apart() -> None:
    lost = [LostRange("b", 0, 5), LostRange("a", 30, 10), LostRange("a", 10, 10), LostRange("a", 20, 10)]
    assert joined(lost) == [LostRange("a", 10, 30), LostRange("b", 0, 5)]
    assert joined([LostRange("a", 0, 5), LostRange("b", 5, 5), LostRange("b", 11, 1)]) == [
        LostRange("a", 0, 5),
        LostRange("b", 5, 5),
        LostRange("b", 11, 1),
    ]
    assert joined([]) == []
