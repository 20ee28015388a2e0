"""Patience and priorities."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from pybackup.cli.params import NamedPath, PlainPath, parse_duration
from pybackup.cli.priority import IoPriority, parse_io_priority
from pybackup.cli.unattended import LONGEST_PAUSE, RunFacts, patiently, unattended
from pybackup.core.errors import BusyError, TargetError
from pybackup.core.places.kinds import LocalPath


class Clock:
    """A clock that only sleeping moves. Changing: ``now``, in seconds, and the pauses."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def tried(patience: float, busy_until: float, *, quiet: bool = False) -> tuple[Clock, int]:
    clock = Clock()
    tries = []

    def attempt() -> int:
        tries.append(clock.now)
        if clock.now < busy_until:
            raise BusyError("x is in use")
        return 0

    try:
        patiently(attempt, patience, quiet=quiet, clock=lambda: clock.now, sleep=clock.sleep)
    except BusyError:
        return clock, -len(tries)
    return clock, len(tries)


def test_without_patience_there_is_one_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert tried(0, 200)[1] == -1
    assert capsys.readouterr() == ("", "")


def test_it_waits_as_long_as_asked_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    clock, tries = tried(60, 200)
    assert tries < -5
    assert clock.now == 160
    assert max(clock.pauses) == LONGEST_PAUSE
    assert len(clock.pauses) < 30
    assert capsys.readouterr().err == "pybackup: x is in use; waiting up to 1 min 00 s\n"


def test_it_goes_on_when_the_lock_is_free(capsys: pytest.CaptureFixture[str]) -> None:
    clock, tries = tried(3600, 103, quiet=True)
    assert tries > 2
    assert 103 <= clock.now < 103 + LONGEST_PAUSE
    assert capsys.readouterr().err == ""


def test_only_what_is_busy_is_waited_for() -> None:
    def attempt() -> int:
        raise TargetError("full")

    with pytest.raises(TargetError):
        patiently(attempt, 60, sleep=lambda _: pytest.fail("it slept"))


@pytest.mark.parametrize(
    "text, seconds", [("90", 90), ("90s", 90), ("1.5m", 90), ("10 m", 600), ("2h", 7200), ("1D", 86400), ("0", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1w", "1h30m", "inf", "1" * 400, "٣"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_io_priorities() -> None:
    assert parse_io_priority("idle") == IoPriority("idle", 0)
    assert parse_io_priority("best-effort") == IoPriority("best-effort", 4)
    assert parse_io_priority("best-effort:7") == IoPriority("best-effort", 7)
    for text in ("idle:3", "realtime", "best-effort:8", "best-effort:", "best-effort:77", ""):
        with pytest.raises(ValueError, match="is not idle, best-effort or"):
            parse_io_priority(text)


SET = """
import os, sys, subprocess
from pybackup.cli import priority
if sys.argv[1] == "program":
    priority._SYSCALLS.clear()
priority.be_nice(int(sys.argv[3]))
priority.set_io_priority(priority.parse_io_priority(sys.argv[2]))
print(os.nice(0), subprocess.run(["ionice"], capture_output=True, text=True).stdout.strip(), flush=True)
"""


@pytest.mark.parametrize("way", ["syscall", "program"])
@pytest.mark.parametrize("asked, told", [("idle", "idle"), ("best-effort:6", "best-effort: prio 6")])
def test_what_is_started_inherits_the_priorities(need, way: str, asked: str, told: str) -> None:  # type: ignore[no-untyped-def]
    need("ionice")
    niceness = min(19, os.nice(0) + 3)
    done = subprocess.run(
        [sys.executable, "-c", SET, way, asked, str(niceness)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{niceness} {told}\n"


def test_nobody_gets_less_nice() -> None:
    code = "import os; from pybackup.cli.priority import be_nice; os.nice(7); be_nice(3); print(os.nice(0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 7


def test_a_mistake_of_ours_is_told_to_those_who_wait(tmp_path: Path) -> None:
    @click.command()
    @click.argument("sources", type=NamedPath(LocalPath), nargs=-1)
    @click.argument("archive", type=PlainPath(LocalPath))
    @click.option("--quiet", is_flag=True)
    @unattended(SimpleNamespace)
    def command(asked: SimpleNamespace, facts: RunFacts) -> int:
        raise ZeroDivisionError("oops")

    hook = f'echo "$PYBACKUP_EXIT_CODE $PYBACKUP_ERROR" > {tmp_path}/told'
    with pytest.raises(ZeroDivisionError):
        command.main(["disk.img", "out.vma", "--on-failure", hook], standalone_mode=False)
    told = (tmp_path / "told").read_text()
    assert told.startswith("1 a failure that pybackup does not know") and "ZeroDivisionError: oops" in told
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
