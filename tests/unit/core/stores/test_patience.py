from __future__ import annotations

import asyncio

import pytest

from pybackup.core.errors import RequestError
from pybackup.core.stores.patience import DEFAULT, FIRST_CONTACT, LONGEST_DELAY, Patience


class Time:
    """A clock that passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Server:
    """Fails so many times, each attempt taking so many seconds."""

    def __init__(self, time: Time, failures: float, error: Exception, takes: float = 0.0) -> None:
        self._time, self._failures, self._error, self._takes = time, failures, error, takes
        self.attempts = 0

    async def __call__(self) -> str:
        self.attempts += 1
        self._time.now += self._takes
        if self.attempts <= self._failures:
            raise self._error
        return "done"


def patience(time: Time, seconds: float = DEFAULT) -> Patience:
    return Patience(seconds, clock=time, jitter=lambda: 1.0, sleep=time.sleep)


FOREVER = float("inf")


def test_what_passes_is_repeated_with_longer_and_longer_pauses() -> None:
    time = Time()
    server = Server(time, 8, ConnectionResetError(104, "reset"))
    assert asyncio.run(patience(time).retry(server)) == "done"
    assert time.slept == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, LONGEST_DELAY, LONGEST_DELAY]


def test_it_ends_within_the_time_counted_from_the_first_failure() -> None:
    time = Time()
    server = Server(time, FOREVER, ConnectionResetError(104, "reset"), takes=30.0)
    with pytest.raises(ConnectionResetError):
        asyncio.run(patience(time).retry(server))
    assert DEFAULT - 30 - LONGEST_DELAY <= time.now - 1030 <= DEFAULT + 30
    assert server.attempts >= 4


def test_what_lasts_is_told_at_once() -> None:
    time = Time()
    server = Server(time, FOREVER, PermissionError(13, "no"))
    with pytest.raises(PermissionError):
        asyncio.run(patience(time).retry(server))
    assert server.attempts == 1 and not time.slept


def test_a_server_that_was_never_reached_is_not_waited_for_so_long() -> None:
    time = Time()
    refused = ConnectionRefusedError(111, "refused")
    impatient = patience(time)
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(impatient.retry(Server(time, FOREVER, refused)))
    assert sum(time.slept) <= FIRST_CONTACT
    assert asyncio.run(impatient.retry(Server(time, 0, refused))) == "done"
    time.slept.clear()
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(impatient.retry(Server(time, FOREVER, refused)))
    assert FIRST_CONTACT < sum(time.slept) <= DEFAULT


def test_a_shorter_patience_knows_what_the_longer_knew() -> None:
    time = Time()
    long = patience(time, 100)
    assert asyncio.run(long.retry(Server(time, 0, OSError()))) == "done"
    short = long.at_most(20)
    assert short.seconds == 20 and short.stall == 5
    assert long.at_most(200).seconds == 100
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(short.retry(Server(time, FOREVER, ConnectionRefusedError(111, "refused"))))
    assert FIRST_CONTACT < sum(time.slept) <= 20


def test_the_environment_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYBACKUP_PATIENCE", raising=False)
    assert Patience.of_environment().seconds == DEFAULT
    monkeypatch.setenv("PYBACKUP_PATIENCE", "7.5")
    assert Patience.of_environment().seconds == 7.5
    monkeypatch.setenv("PYBACKUP_PATIENCE", "nan")
    with pytest.raises(RequestError, match="is not a number of seconds"):
        Patience.of_environment()
