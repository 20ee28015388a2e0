from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pytest
from doubles import check_extents

from pybackup.core.system import sparse_map
from pybackup.core.system.sparse_map import Seek, file_extents


def filesystem(data: Sequence[tuple[int, int]], size: int, broken_at: int | None = None, code: int = errno.EIO) -> Seek:
    """lseek() of a file with data in these (start, end) ranges, failing with ``code`` from ``broken_at`` on."""

    def seek(position: int, whence: int) -> int:
        if broken_at is not None and position >= broken_at:
            raise OSError(code, os.strerror(code))
        inside = any(start <= position < end for start, end in data)
        if whence == os.SEEK_HOLE:
            return next(end for start, end in data if start <= position < end) if inside else position
        following = [start for start, _ in data if start > position]
        if position >= size or not (inside or following):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return position if inside else min(following)

    return seek


def shape(seek: Seek, offset: int, length: int) -> list[tuple[int, int, bool]]:
    extents = file_extents(seek, offset, length)
    check_extents(extents, offset, length)
    assert all(extent.zero == extent.hole for extent in extents)
    return [(extent.offset, extent.end, extent.zero) for extent in extents]


def test_no_data_is_one_hole_of_odd_size() -> None:
    assert shape(filesystem([], 1_000_001), 0, 1_000_001) == [(0, 1_000_001, True)]


def test_data_is_rounded_outwards_and_clipped() -> None:
    seek = filesystem([(5000, 6000), (19_999, 20_000)], 20_000)
    assert shape(seek, 0, 20_000) == [
        (0, 4096, True),
        (4096, 8192, False),
        (8192, 16384, True),
        (16384, 20_000, False),
    ]


def test_rounding_does_not_depend_on_where_the_question_starts() -> None:
    seek = filesystem([(5000, 6000)], 20_000)
    assert shape(seek, 7000, 100) == [(7000, 7100, False)]
    assert shape(seek, 7000, 5000) == [(7000, 8192, False), (8192, 12_000, True)]


def test_neighbours_that_touch_after_rounding_are_one() -> None:
    seek = filesystem([(100, 200), (4000, 4200), (8192, 8193), (30_000, 30_001)], 40_000)
    assert shape(seek, 0, 40_000) == [
        (0, 12288, False),
        (12288, 28672, True),
        (28672, 32768, False),
        (32768, 40_000, True),
    ]


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.EAGAIN])
def test_any_other_error_makes_the_rest_data(code: int) -> None:
    assert shape(filesystem([], 50_000, broken_at=0, code=code), 0, 50_000) == [(0, 50_000, False)]
    seek = filesystem([(8192, 12288), (40_960, 45_056)], 50_000, broken_at=12288, code=code)
    assert shape(seek, 0, 50_000) == [(0, 8192, True), (8192, 50_000, False)]


def test_an_error_in_seek_hole_makes_the_rest_data_even_enxio() -> None:
    seek = filesystem([(8192, 12288)], 50_000, broken_at=8192, code=errno.ENXIO)
    assert shape(seek, 0, 50_000) == [(0, 8192, True), (8192, 50_000, False)]


@pytest.mark.parametrize("answer", [0, 4096, 8191])
def test_an_answer_that_goes_backwards_is_not_believed(answer: int) -> None:
    assert shape(lambda position, whence: answer, 8192, 10_000) == [(8192, 18_192, False)]


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_map, "MOST_EXTENTS", 4)
    seek = filesystem([(start, start + 4096) for start in range(8192, 200_000, 8192)], 200_000)
    extents = file_extents(seek, 0, 200_000)
    assert [extent.zero for extent in extents] == [True, False, True, False]
    assert file_extents(seek, extents[-1].end, 100)[0].zero
