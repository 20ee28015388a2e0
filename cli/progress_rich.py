"""Progress on a terminal, by rich: one line a drive, and a total where there are several."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.text import Text

from pybackup.cli.estimate import Estimate
from pybackup.cli.names import printable
from pybackup.cli.numbers import done_of, duration, percent, remaining, short
from pybackup.core.jobs.job import DriveProgress, Job, State

MARGIN = 5
"""Columns at the right that stay free: there the terminal writes ^C, which must not begin a line of its own."""
GAP = "  "
LEAST_NAME = 8
GOOD_NAME = 18
LEAST_BAR = 10
LEAST_LEFT = 9
MOST_BAR = 60
"""Columns."""


class Row(NamedTuple):
    """What a line says. ``share``: 0 to 1, of the bar."""

    name: str
    share: float
    percentage: str
    left: str
    amounts: str = ""
    rate: str = ""
    note: str = ""


class Line(NamedTuple):
    """What is drawn on one line; ``bar`` is None where there is no room for one."""

    before: Text
    bar: ProgressBar | None
    after: Text


def lines_of(rows: Sequence[Row], width: int) -> list[Line]:
    """The rows as lines of at most so many columns.

    Name, percentage and the time that is left are always there; the bar, the bytes, the rate and the notes as far as
    there is room.
    """
    widths = {key: max(cell_len(getattr(row, key)) for row in rows) for key in Row._fields if key != "share"}
    widths["all"] = width
    widths["left"] = max(LEAST_LEFT, widths["left"])
    room = width - sum(widths[key] + len(GAP) for key in ("percentage", "left"))
    wanted = sum(widths[key] + len(GAP) for key in ("amounts", "rate")) + LEAST_BAR + len(GAP)
    widths["name"] = min(widths["name"], max(LEAST_NAME, room - wanted, min(GOOD_NAME, room)))
    room -= widths["name"]
    bar = LEAST_BAR if room >= LEAST_BAR + len(GAP) else 0
    room -= bar + len(GAP) if bar else 0
    shown = ["percentage"]
    for key in ("amounts", "rate", "note"):
        if widths[key] + len(GAP) > room:
            break
        shown += [key] if widths[key] else []
        room -= widths[key] + len(GAP) if widths[key] else 0
    shown.insert(min(3, len(shown)), "left")
    return [_line(row, widths, min(MOST_BAR, bar + room) if bar else 0, shown) for row in rows]


_STYLES = {"amounts": "progress.download", "rate": "magenta", "left": "progress.remaining", "note": "dim"}
_BAR = "bar.finished"
"""What is done is green from the beginning on: red, as rich has it for bars and rates, would look like an error."""


def _line(row: Row, widths: dict[str, int], bar: int, shown: Sequence[str]) -> Line:
    before = Text(_fitted(row.name, widths["name"]) + (GAP if bar else ""), style="bold")
    after = Text()
    for key in shown:
        cell = getattr(row, key)
        after.append(GAP + (cell if key == "note" else cell.rjust(widths[key])), _STYLES.get(key))
    after.rstrip()
    after.truncate(max(0, widths["all"] - before.cell_len - bar))
    return Line(before, _bar(row.share, bar) if bar else None, after)


def _bar(share: float, width: int) -> ProgressBar:
    """A bar of so many columns."""
    return ProgressBar(total=1.0, completed=share, width=width, complete_style=_BAR)


def _fitted(name: str, width: int) -> str:
    """The name in exactly so many columns; what is too long loses its middle."""
    if cell_len(name) > width:
        head, tail = name[: max(1, (width - 1) // 2)], name[-(width // 2) :]
        while cell_len(head) + cell_len(tail) + 1 > width and (head or tail):
            head, tail = (head[:-1], tail) if cell_len(head) >= cell_len(tail) else (head, tail[1:])
        name = f"{head}…{tail}"
    return name + " " * (width - cell_len(name))


class Picture:
    """The live display: lines at the bottom that are drawn again and again.

    Fixed: the console. Changing: an estimate for each drive and for all, and the widths of the lines that are there.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._terminal: TextIO = self._console.file  # type: ignore[assignment]
        self._estimates: list[Estimate] = []
        self._total = Estimate()
        self._drawn: list[int] = []

    def start(self, job: Job, verb: str) -> None:
        """From now on other messages go above the lines."""
        if self._console.is_terminal and sys.stderr is self._terminal:
            sys.stderr = _Above(self._terminal, self.erase)

    def update(self, job: Job) -> None:
        """Draw where the job is."""
        drives = job.progress.drives
        self._estimates += [Estimate() for _ in drives[len(self._estimates) :]]
        for drive, estimate in zip(drives, self._estimates, strict=True):
            if drive.done or drive.read:
                estimate.look(drive.done, drive.effort)
        self._total.look(job.progress.done, job.progress.effort)
        if self._console.is_terminal:
            self._draw(job)

    def continued(self) -> None:
        """After Ctrl-Z the shell has written below the lines: they are drawn anew."""
        self._drawn = []

    def stop(self, job: Job) -> None:
        """Leave the last picture."""
        if isinstance(sys.stderr, _Above):
            sys.stderr = self._terminal
        if job.progress.drives and (self._drawn or job.error is None):
            self.update(job)
            if not self._console.is_terminal:
                self._draw(job)
            self._terminal.write("\n")
            self._terminal.flush()

    # -- what is drawn --

    def rows(self, job: Job) -> list[Row]:
        """What is shown now, as far as the terminal's height goes: of many drives those that are worked on."""
        drives = list(zip(job.progress.drives, self._estimates, strict=True))
        most = max(1, self._console.height - 3)
        if len(drives) > most:
            busy = [one for one in drives if 0 < one[0].done < one[0].size]
            drives = (busy or drives)[:most]
        alone = len(job.progress.drives) == 1
        rows = [_row_of(job, drive, self._total if alone else estimate, alone) for drive, estimate in drives]
        return rows if alone else [*rows, _total_of(job, self._total)]

    def _draw(self, job: Job) -> None:
        rows = self.rows(job)
        if not rows:
            return
        console, width = self._console, self._console.width - MARGIN
        with console.capture() as capture:
            lines = lines_of(rows, width)
            for number, line in enumerate(lines):
                console.print(line.before, end="", crop=True, no_wrap=True, soft_wrap=True)
                if line.bar is not None:
                    console.print(line.bar, end="", soft_wrap=True)
                console.print(line.after, end="\n" if number < len(lines) - 1 else "", no_wrap=True, soft_wrap=True)
        self._terminal.write(self._back() + capture.get())
        self._terminal.flush()
        self._drawn = [
            line.before.cell_len + (line.bar.width or 0 if line.bar else 0) + line.after.cell_len for line in lines
        ]

    def _back(self) -> str:
        """To the beginning of the lines that are there, which are erased; a narrower terminal has broken them."""
        if not self._drawn:
            return ""
        width = max(1, self._console.width)
        up = sum(max(1, -(-drawn // width)) for drawn in self._drawn) - 1
        return "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J"

    def erase(self) -> None:
        """Make room for a message; the lines come back with the next update."""
        self._terminal.write(self._back())
        self._drawn = []


class _Above(io.TextIOBase):
    """The standard error while lines are drawn on it: what others write goes above them."""

    def __init__(self, terminal: TextIO, erase: Callable[[], None]) -> None:
        self._terminal, self._erase = terminal, erase

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The terminal's."""
        return self._terminal.encoding

    def write(self, text: str, /) -> int:
        """Pass on, where the lines were."""
        self._erase()
        return self._terminal.write(text)

    def flush(self) -> None:
        """Pass on."""
        self._terminal.flush()

    def isatty(self) -> bool:
        """As the terminal."""
        return self._terminal.isatty()

    def fileno(self) -> int:
        """The terminal's."""
        return self._terminal.fileno()


def _row_of(job: Job, drive: DriveProgress, estimate: Estimate, alone: bool) -> Row:
    notes = [f"zeros {percent(drive.zero, drive.done)}" if drive.done else "", _ratio(job) if alone else ""]
    return _row(job, printable(drive.name), drive.done, drive.size, estimate, ", ".join(filter(None, notes)))


def _total_of(job: Job, estimate: Estimate) -> Row:
    return _row(job, "total", job.progress.done, job.progress.size, estimate, _ratio(job))


def _row(job: Job, name: str, done: int, size: int, estimate: Estimate, note: str) -> Row:
    share = done / size if size else 1.0
    is_over = job.state is State.CONCLUDED
    rate = done / job.elapsed if is_over and job.elapsed else estimate.rate
    if is_over:
        left = f"in {duration(job.elapsed)}" if done >= size else ""
    elif job.state is State.PAUSED:
        left = "paused"
    else:
        left = "" if estimate.left is None or not done or done >= size else remaining(estimate.left)
    speed = f"{short(rate)}/s" if rate else ""
    return Row(name, share, f"{100 * share:.1f} %", left, done_of(done, size), speed, note)


def _ratio(job: Job) -> str:
    progress = job.progress
    return f"ratio {percent(progress.written, progress.stored)}" if progress.written and progress.stored else ""
