"""What the displays show: on narrow terminals, in logs, after Ctrl-Z."""

from __future__ import annotations

import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from pybackup.cli.estimate import Estimate
from pybackup.cli.numbers import done_of, remaining
from pybackup.cli.progress import choose
from pybackup.cli.progress_plain import Plain
from pybackup.cli.progress_rich import MARGIN, Line, Picture, Row, lines_of
from pybackup.core.jobs.job import DriveProgress, Job, State
from pybackup.formats.text import shown

MIB = 1 << 20


class FakeJob(Job):
    """A job that says it is as far as it is told."""

    def __init__(self, *drives: DriveProgress) -> None:
        super().__init__()
        self.progress.drives = list(drives)

    async def _work(self) -> None:
        raise AssertionError("never run")

    def enter(self, state: State) -> None:
        self._state = state


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def text_of(line: Line) -> str:
    bar = "#" * (line.bar.width or 0) if line.bar is not None else ""
    return line.before.plain + bar + line.after.plain


ROW = Row(
    "vm-100-disk-0-with-a-long-name", 0.22, "22.0 %", "2 min 13 s left", "703 of 3174 MiB", "74.1 MiB/s", "zeros 3.0 %"
)


@given(st.integers(20, 200), st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)))
def test_a_line_never_breaks(width: int, names: list[str]) -> None:
    rows = [ROW._replace(name=name) for name in [*names, "total"]]
    for line in lines_of(rows, width):
        assert cell_len(text_of(line)) <= width


@pytest.mark.parametrize("width", [40, 60, 100, 140])
def test_name_percentage_and_time_left_are_always_there(width: int) -> None:
    (line,) = lines_of([ROW], width - MARGIN)
    text = text_of(line)
    assert text.startswith("vm-") and "22.0 %" in text and "2 min 13 s left" in text
    assert ("#" in text) == (width >= 60)
    assert ("703 of 3174 MiB" in text) == ("74.1 MiB/s" in text) == (width >= 100)
    assert ("zeros" in text) == (width >= 140)


@pytest.mark.parametrize("name", ["Windows [old]", "vm:warning:", "[/bold]", "a\x1b[31mb", "two\nlines"])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    out = io.StringIO()
    job = FakeJob(DriveProgress(name, 100, done=50))
    picture = Picture(Console(file=out, width=100))
    picture.start(job, "backup")
    picture.stop(job)
    assert shown(name) in out.getvalue() and "\x1b" not in out.getvalue()


def on_a_terminal(job: Job, width: int = 100) -> tuple[Picture, io.StringIO]:
    out = io.StringIO()
    return Picture(Console(file=out, width=width, force_terminal=True, color_system=None)), out


def test_lines_are_drawn_again_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    job = FakeJob(DriveProgress("a", 100), DriveProgress("b", 100))
    picture, out = on_a_terminal(job)
    monkeypatch.setattr(sys, "stderr", out)
    picture.start(job, "backup")
    assert out.getvalue() == "", "what fails at once needs no picture"
    picture.update(job)
    picture.update(job)
    assert out.getvalue().count("\r\x1b[2A\x1b[J") == 1
    picture.continued()
    before = len(out.getvalue())
    picture.update(job)
    assert "\x1b[J" not in out.getvalue()[before:], "the shell has written meanwhile"
    picture.stop(job)
    assert out.getvalue().endswith("\n")


def test_messages_go_above_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    job = FakeJob(DriveProgress("a", 100))
    picture, out = on_a_terminal(job)
    monkeypatch.setattr(sys, "stderr", out)
    picture.start(job, "backup")
    picture.update(job)
    print("a warning", file=sys.stderr)
    assert out.getvalue().endswith("\r\x1b[Ja warning\n")
    picture.update(job)
    picture.stop(job)
    assert sys.stderr is out


def test_of_many_drives_those_at_work_are_shown() -> None:
    job = FakeJob(*(DriveProgress(f"d{number}", 100, done=(number == 70) * 50) for number in range(100)))
    picture = Picture(Console(file=io.StringIO(), width=80, height=20))
    picture.start(job, "backup")
    picture.update(job)
    assert [row.name for row in picture.rows(job)] == ["d70", "total"]


def test_the_estimate_is_of_the_last_seconds_and_of_what_is_allocated() -> None:
    clock = Clock()
    estimate = Estimate(clock)
    drive = DriveProgress("a", 1000 * MIB, to_read=100 * MIB)
    for _ in range(20):
        estimate.look(drive.done, drive.effort)
        assert estimate.left is None or estimate.left <= 10
        clock.now += 0.1
        drive.read += MIB
        drive.done += MIB
    assert estimate.left == pytest.approx((100 - 19) / 10)
    clock.now += 60  # Ctrl-Z
    estimate.look(drive.done, drive.effort)
    clock.now += 0.1
    drive.read += MIB
    estimate.look(drive.done, drive.effort)
    assert estimate.left is not None and estimate.left < 10
    assert drive.effort == (21 * MIB, 100 * MIB)
    drive.read = 101 * MIB  # a compressed image holds more than its file
    assert drive.effort == (drive.done, drive.size)


def test_what_does_not_move_has_no_end() -> None:
    clock = Clock()
    estimate = Estimate(clock)
    for _ in range(20):
        estimate.look(5, (5, 10))
        clock.now += 0.4
    assert estimate.left is None and estimate.rate == 0


def test_plain_lines_have_a_time_and_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    drive = DriveProgress("a", 3174 * MIB, done=703 * MIB)
    job = FakeJob(drive)
    job.enter(State.RUNNING)
    plain = Plain()
    clock = Clock()
    plain._estimate = Estimate(clock)
    plain.start(job, "backup")
    for _ in range(11):
        plain.update(job)
        drive.done += 7 * MIB
        clock.now += 0.1
    drive.done = 703 * MIB + 70 * MIB
    plain.stop(job)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d 24 %, 773 of 3174 MiB, 70.0 MiB/s, 34 s left", line), line


@pytest.mark.parametrize("terminal", ["", "dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(terminal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", terminal)
    assert isinstance(choose("auto", False), Plain)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose("auto", False), Picture)


def test_units_are_the_same_everywhere() -> None:
    assert done_of(703 * MIB, 3174 * MIB) == "703 of 3174 MiB"
    assert done_of(0, 512) == "0 of 512 B"
    assert done_of(1 << 30, 20 << 30) == "1.0 of 20.0 GiB"
    assert [remaining(one) for one in (0.2, 59.4, 59.6, 3600, 90000)] == [
        "0 s left",
        "59 s left",
        "1 min 00 s left",
        "1 h 00 min left",
        "1 d 01 h left",
    ]
