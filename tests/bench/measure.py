"""Runs commands and measures them: wall and processor time, peak memory; in pairs, in turn, for machines are noisy."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took: seconds of wall and processor time, and MiB of memory at its peak."""

    wall: float
    cpu: float
    peak: float


def run(command: Sequence[str], stdout: str = os.devnull) -> Cost:
    """Run a command that must succeed; its output goes to a file."""
    with open(stdout, "wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def median(costs: Sequence[Cost], what: Callable[[Cost], float]) -> float:
    """The median of one figure."""
    return statistics.median(what(cost) for cost in costs)


def pairs(ours: Callable[[], Cost], theirs: Callable[[], Cost], rounds: int) -> tuple[list[Cost], list[Cost]]:
    """Run both in turn, after one of each that is not counted."""
    ours(), theirs()
    ours_costs, theirs_costs = [], []
    for _ in range(rounds):
        ours_costs.append(ours())
        theirs_costs.append(theirs())
    return ours_costs, theirs_costs


def ratio(ours: Sequence[Cost], theirs: Sequence[Cost], what: Callable[[Cost], float]) -> float:
    """The median of the ratios, pair by pair."""
    return statistics.median(what(a) / what(b) for a, b in zip(ours, theirs, strict=True))


class Results:
    """The file of all tables. Fixed: its path and what stands before them. Changing: its sections, by their titles."""

    def __init__(self, path: Path, preface: str) -> None:
        """What the file holds already is kept, but for the preface, until it is measured again."""
        self._path, self._preface = path, preface
        found = path.read_text().split("\n## ")[1:] if path.exists() else []
        self._sections = {title: rest.strip("\n") for title, _, rest in (one.partition("\n") for one in found)}

    def put(self, title: str, content: str) -> None:
        """A section is measured: write the file."""
        self._sections[title] = content.strip("\n")
        parts = [self._preface.strip("\n"), *(f"## {one}\n\n{what}" for one, what in self._sections.items())]
        self._path.write_text("\n\n".join(parts) + "\n")


class Table:
    """Collects rows, and prints them as a Markdown table as they come; at the end it becomes a section of the results.

    Fixed: title and note. Changing: the rows.
    """

    def __init__(self, title: str, note: str) -> None:
        """``note``: how it was measured, above the table."""
        self._title, self._note = title, note
        self._lines = ["| work | against | at most | measured | figures |", "|---|---|---|---|---|"]
        print(f"\n## {title}\n\n{note}\n\n" + "\n".join(self._lines), flush=True)

    def row(self, work: str, against: str, limit: float, measured: float, figures: str, *, least: bool = False) -> None:
        """One row; ``least`` turns the limit round."""
        met = measured >= limit if least else measured <= limit
        bound = f"at least {limit:g}" if least else f"{limit:g}"
        line = f"| {work} | {against} | {bound} | {measured:.3g}{'' if met else ' (missed)'} | {figures} |"
        print(line, flush=True)
        self._lines.append(line)

    def put_into(self, results: Results) -> None:
        """All rows are there."""
        results.put(self._title, "\n".join([self._note, "", *self._lines]))
