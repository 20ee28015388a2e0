from __future__ import annotations

import pytest

from pybackup.core.errors import RequestError
from pybackup.core.jobs.ratelimit import RateLimit

MB = 1_000_000


class Clock:
    """Seconds, as somebody says."""

    def __init__(self) -> None:
        self.now = 1e5  # a machine that has run for a day: its clock is coarser than one at zero

    def __call__(self) -> float:
        return self.now


def copy_for(seconds: float, limit: RateLimit, clock: Clock, piece: int, cost: float) -> list[tuple[float, int]]:
    """(when, bytes) of all pieces copied; each takes ``cost`` seconds."""
    end, copied = clock.now + seconds, []
    while clock.now < end:
        delay = limit.delay()
        if delay:
            clock.now += delay
            continue
        limit.charge(piece)
        copied.append((clock.now, piece))
        clock.now += cost
    return copied


def any_second(copied: list[tuple[float, int]], begin: float, end: float) -> list[int]:
    """Bytes copied in each of many windows of one second."""
    starts = [begin + 0.0371 * step for step in range(int((end - begin - 1) / 0.0371))]
    return [sum(size for at, size in copied if start <= at < start + 1) for start in starts]


@pytest.mark.parametrize("speed", [2 * MB, 10 * MB, 50 * MB, 777 * MB])
@pytest.mark.parametrize("pieces_a_second", [20, 33, 100])
def test_every_second_is_within_5_percent(speed: int, pieces_a_second: int) -> None:
    clock = Clock()
    limit = RateLimit(speed, clock)
    copied = copy_for(12, limit, clock, speed // pieces_a_second, 0.0003)
    assert all(0.95 * speed <= done <= 1.05 * speed for done in any_second(copied, clock.now - 11, clock.now))


@pytest.mark.parametrize("speed, piece", [(1000, 65536), (100_000, 65536), (1 * MB, 4 * MB)])
def test_pieces_larger_than_a_slice_come_as_seldom_as_they_must(speed: int, piece: int) -> None:
    clock = Clock()
    limit = RateLimit(speed, clock)
    copied = copy_for(20 * piece / speed, limit, clock, piece, 0.0)
    assert abs(sum(size for _, size in copied) - 20 * piece) <= piece


def test_the_speed_changes_at_once() -> None:
    clock = Clock()
    limit = RateLimit(1 * MB, clock)
    limit.charge(100 * MB)
    assert limit.delay() > 90
    limit.set_speed(20 * MB)
    assert limit.delay() == 0
    copied = copy_for(5, limit, clock, MB // 2, 0.001)
    assert all(19 * MB <= done <= 21 * MB for done in any_second(copied, clock.now - 5, clock.now))
    limit.set_speed(0)
    limit.charge(10**15)
    assert limit.delay() == 0
    assert limit.speed == 0


def test_what_guests_copy_slows_the_background() -> None:
    clock = Clock()
    limit = RateLimit(10 * MB, clock)
    end, background, guests = clock.now + 5, 0, 0
    while clock.now < end:
        guests += 40_000  # 8 MB a second: every 5 ms
        limit.charge(40_000)
        while not limit.delay():
            limit.charge(100_000)
            background += 100_000
        clock.now += 0.005
    assert guests == pytest.approx(40 * MB, rel=0.01)
    assert guests + background == pytest.approx(50 * MB, rel=0.05)


def test_what_was_not_used_is_lost() -> None:
    clock = Clock()
    limit = RateLimit(10 * MB, clock)
    clock.now += 60
    assert sum(size for _, size in copy_for(1, limit, clock, 100_000, 0.0)) <= 11 * MB


def test_whoever_sleeps_as_long_as_was_said_may_go_on() -> None:
    clock = Clock()
    limit = RateLimit(3 * MB, clock)
    for _ in range(10_000):
        limit.charge(MB)
        clock.now += limit.delay()
        assert limit.delay() == 0


@pytest.mark.parametrize("speed", [-1, -(10**12)])
def test_a_negative_speed_is_refused(speed: int) -> None:
    limit = RateLimit(5, Clock())
    with pytest.raises(RequestError, match="negative"):
        limit.set_speed(speed)
    assert limit.speed == 5
    with pytest.raises(RequestError):
        RateLimit(speed, Clock())
