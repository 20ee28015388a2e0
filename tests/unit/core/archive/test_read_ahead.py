from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from archives import read_of

from pybackup.core.archive.read_ahead import AHEAD, FIRST, LARGEST, ReadAhead, Sized, in_order


@pytest.mark.parametrize("size", [0, 1, FIRST - 1, FIRST, FIRST + 1, 3 * LARGEST + 17])
@pytest.mark.parametrize("piece", [1 << 20, 77_777])
def test_it_gives_everything_in_order(size: int, piece: int) -> None:
    content = random.Random(size).randbytes(size)
    reader = ReadAhead(read_of(content), size)
    found = bytearray()
    while part := reader.read(piece):
        assert len(part) <= piece
        found += part
    reader.close()
    assert bytes(found) == content
    assert reader.read(1) == b""


def test_who_wants_the_beginning_pays_for_little_more() -> None:
    asked: list[tuple[int, int]] = []

    def pread(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return bytes(length)

    reader = ReadAhead(pread, 1 << 40)
    reader.read(100)
    reader.close()
    assert asked == [(0, FIRST)]


def test_ranges_grow_and_some_are_on_the_way() -> None:
    asked: list[tuple[int, int]] = []

    def pread(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return bytes(length)

    reader = ReadAhead(pread, 1 << 40)
    taken = 0
    while taken < 20 * LARGEST:
        taken += len(reader.read(1 << 30))
    reader.close()
    assert max(length for _, length in asked) == LARGEST
    assert taken <= sum(length for _, length in asked) <= taken + AHEAD * LARGEST


def test_a_failure_comes_where_it_belongs() -> None:
    def pread(offset: int, length: int) -> bytes:
        if offset:
            raise OSError(5, "gone")
        return bytes(length)

    reader = ReadAhead(pread, 1 << 30)
    assert len(reader.read(FIRST)) == FIRST
    with pytest.raises(OSError, match="gone"):
        reader.read(1)
    reader.close()


def test_calls_are_made_ahead_and_give_their_results_in_order() -> None:
    made: list[int] = []

    def call(number: int) -> int:
        made.append(number)
        return number

    with ThreadPoolExecutor(1) as pool:
        found = in_order(pool, (Sized(1, partial(call, number)) for number in range(10)), 3, 100)
        assert next(found) == 0
        found.close()
    assert made[0] == 0 and len(made) <= 4
    with ThreadPoolExecutor(3) as pool:
        assert list(in_order(pool, (Sized(0, partial(call, number)) for number in range(50)), 7, 0)) == list(range(50))
