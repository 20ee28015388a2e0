"""The names of bitmaps that stay on purpose are known again, and nobody else's are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.core.qemu.bitmap_names import BitmapName, parse_bitmap_name
from pybackup.core.qemu.bitmaps import BitmapRequest, ParentArchive
from pybackup.core.qemu.names import copy_name, disk_name, maker_of, new_run, recording_name

UUIDS = st.binary(min_size=16, max_size=16)


@given(UUIDS, st.integers(0, (1 << 64) - 1), st.none() | UUIDS, st.text(min_size=1))
def test_a_name_is_known_again(archive: bytes, created: int, parent: bytes | None, drive: str) -> None:
    name = BitmapName(archive, created, parent, drive)
    assert parse_bitmap_name(str(name)) == name
    assert maker_of(str(name)) is None


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_a_runs_own_is_no_archives(shared: bool) -> None:
    run = new_run()
    for name in (copy_name(disk_name(run, 3, shared=shared)), recording_name(disk_name(run, 3, shared=shared))):
        assert parse_bitmap_name(name) is None
        assert maker_of(name) == (run, shared)


@pytest.mark.parametrize("name", ["", "bitmap0", "pybackup-", f"pybackup-{'0' * 32}", f"pybackup-{'0' * 32}-1-x-a"])
def test_names_of_others(name: str) -> None:
    assert parse_bitmap_name(name) is None


def name_of(archive: int, parent: int | None) -> BitmapName:
    return BitmapName(bytes([archive] * 16), archive, None if parent is None else bytes([parent] * 16), "a")


@pytest.mark.parametrize("keeps_parent", [False, True])
def test_only_what_the_new_archive_makes_useless_is_superseded(keeps_parent: bool) -> None:
    """1 is the grandparent, 2 the parent, 3 the new one, 4 another child of 2, 5 of the same series, 6 of another."""
    parent = ParentArchive(bytes([2] * 16), 2, {"a": 1}, frozenset([bytes([1] * 16)]))
    request = BitmapRequest(bytes([3] * 16), 3, parent, keeps_parent, frozenset([bytes([5] * 16)]))
    bitmaps = [name_of(1, None), name_of(2, 1), name_of(3, 2), name_of(4, 2), name_of(5, None), name_of(6, 7)]
    gone = [name.created for name in bitmaps if request.is_superseded(name)]
    assert gone == ([1, 4, 5] if keeps_parent else [1, 2, 4, 5])
