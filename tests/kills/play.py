"""Plays situations: each game has a situation and a point, and is told as ``SITUATION@POINT``."""

from __future__ import annotations

import itertools
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kills.archives_made import ARCHIVES
from kills.box import Box
from kills.disks_restored import RESTORED
from kills.histories_kept import HISTORIES
from kills.points import Instant, Point, SystemCall, parse, system_calls_of
from kills.servers import SERVERS
from kills.situations import Look, Situation

LOOKS = [
    Look("verify", "verify", "x.vma.zst"),
    Look("info", "info", "--map", "x.vma.zst"),
    Look("compare", "compare", "x.vma.zst", "a.img"),
]
SITUATIONS: dict[str, Situation] = {one.name: one for one in (*ARCHIVES, *RESTORED, *HISTORIES, *SERVERS, *LOOKS)}


def playable() -> list[str]:
    """The situations whose programs are installed."""
    return [name for name, one in SITUATIONS.items() if all(map(shutil.which, one.needs))]


@dataclass
class Score:
    """Changing, under its lock: how many games of each situation, how many of them ended by the kill, and failures."""

    games: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        rows = [f"{name:28}{self.games[name]:6} games{self.killed[name]:6} killed" for name in self.games]
        total = f"{self.games.total()} games, {self.killed.total()} killed, {len(self.failures)} failed"
        return "\n".join([*rows, total, *self.failures])


class Table:
    """One situation in a box of its own, for as long as games go well. One thread plays at a table."""

    def __init__(self, folder: Path, situation: Situation) -> None:
        self._folders = (folder / str(number) for number in itertools.count())
        self._situation = situation
        self._box: Box | None = None
        self.seconds = 0.0
        """What the last whole run took."""

    def box(self) -> Box:
        if self._box is None:
            self._box = Box(next(self._folders))
            self._situation.lay(self._box)
            self._situation.before(self._box)
            self._run_again(self._box)
        return self._box

    def _run_again(self, box: Box) -> None:
        begun = time.monotonic()
        self._situation.again(box)
        self.seconds = time.monotonic() - begun

    def points(self) -> list[SystemCall]:
        """All system calls to be killed at."""
        box, one = self.box(), self._situation
        one.before(box)
        return system_calls_of(box, one.command(box), lambda runs: one.meanwhile(box, runs))

    def play(self, point: Point | None, score: Score, draw: random.Random) -> None:
        """One game, at a random instant where there is no point; a failure is noted."""
        name = self._situation.name
        try:
            self.box()
            point = point or self._instant(draw)
            ended = self._play(point)
        except Exception as error:
            with score.lock:
                score.games[name] += 1
                score.failures.append(f"STRESS_KILL={name}@{point}: {type(error).__name__}: {error}")
            self.close()
        else:
            with score.lock:
                score.games[name] += 1
                score.killed[name] += ended == -9

    def _instant(self, draw: random.Random) -> Instant:
        """Mostly when the start is over, which is half of so short a run."""
        return Instant(draw.uniform(0.3 if draw.random() < 0.8 else 0.0, 1.05) * self.seconds)

    def _play(self, point: Point) -> int:
        box, one = self.box(), self._situation
        one.before(box)
        ended = point.kill(box, one.command(box), lambda runs: one.meanwhile(box, runs))
        one.hold(box, ended)
        self._run_again(box)
        return ended.code

    def close(self) -> None:
        """Leave nothing behind."""
        box, self._box = self._box, None
        if box is not None:
            box.empty()


def play(folder: Path, games: Sequence[tuple[str, Point | None]], workers: int, seed: int) -> Score:
    """Play these games, a situation at a time in each thread; a game without a point gets a random instant."""
    score = Score()
    tables: dict[str, list[tuple[int, Point | None]]] = {}
    for number, (name, point) in enumerate(games):
        tables.setdefault(name, []).append((number, point))

    def play_all(name: str) -> None:
        table = Table(folder / name, SITUATIONS[name])
        try:
            for number, point in tables[name]:
                table.play(point, score, random.Random(seed + number))
        finally:
            table.close()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(play_all, tables))
    return score


def instants(names: Sequence[str], count: int) -> list[tuple[str, Point | None]]:
    """So many games at random instants, of all situations alike."""
    return [(name, None) for name in itertools.islice(itertools.cycle(names), count)]


def system_calls(
    folder: Path, names: Sequence[str], count: int, workers: int, seed: int
) -> list[tuple[str, Point | None]]:
    """So many games at system calls, of all situations alike, none twice; fewer where there are no more."""
    with ThreadPoolExecutor(workers) as pool:
        points = list(pool.map(lambda name: _points(folder / name, name), names))
    for one in points:
        random.Random(seed).shuffle(one)
    return list(itertools.islice(_in_turn(dict(zip(names, map(iter, points), strict=True))), count))


def _points(folder: Path, name: str) -> list[SystemCall]:
    table = Table(folder, SITUATIONS[name])
    try:
        points = table.points()
    except Exception:
        points = [SystemCall("exit_group", 1)]  # that game will tell what is wrong
    finally:
        table.close()
    return points


def _in_turn(found: dict[str, Iterator[SystemCall]]) -> Iterator[tuple[str, Point | None]]:
    while found:
        for name in list(found):
            if (point := next(found[name], None)) is None:
                del found[name]
            else:
                yield name, point


def named(games: str) -> list[tuple[str, Point | None]]:
    """What a score told: ``SITUATION@POINT``, several separated by commas."""
    return [(name, parse(point)) for name, _, point in (one.partition("@") for one in games.split(","))]
