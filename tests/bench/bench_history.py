"""The history half of `make bench`: nights of a disk through us, and through borg and restic where they are installed.

Each night one in a hundred of the clusters that hold something gets 4 KiB of noise somewhere.
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Protocol

import bench_bitmaps
import make_image
from measure import Cost, Table, run

from pybackup.formats import zstd_seekable as zs

PYBACKUP = [str(Path(sys.executable).with_name("pybackup"))]
CLUSTER, BLOCK = 65536, 4096
NIGHTS, CHAIN = 7, 30
"""Nights that all go through, and deltas of the chain that we make alone."""
LEVEL = ("--level", "1")


def measure(table: Table, folder: Path, rounds: int) -> None:
    """Fill the table; what is made on the way is removed, but for the disks as they are at first."""
    missing = [name for name in ("borg", "restic") if shutil.which(name) is None]
    if missing:
        print(f"{' and '.join(missing)} are not installed: no rows against them", flush=True)
    small, large = folder / "share.img", folder / "disk.img"
    if not small.exists():
        make_image.make(small, "/usr/share", 2 << 30, 800_000_000)
    if not large.exists():
        make_image.make(large)
    peaks: list[float] = []
    for title, pristine in (("2 GiB", small), ("6 GiB", large)):
        with tempfile.TemporaryDirectory(dir=folder) as private:
            nights = Nights(table, Path(private), pristine, rounds, title)
            nights.measure()
            peaks += nights.peaks
        with tempfile.TemporaryDirectory(dir=folder) as private:
            peaks += bench_bitmaps.measure(table, Path(private), Disk(pristine, Path(private, "disk.img")), title)
    table.row("peak memory of any of these", "MiB", 200, max(peaks), f"{max(peaks):.0f} MiB")


class Disk:
    """A disk that somebody works on. Fixed: its file, and the clusters that hold something."""

    def __init__(self, pristine: Path, image: Path) -> None:
        subprocess.run(["cp", "--sparse=always", "--", str(pristine), str(image)], check=True)
        self.image = image
        self.used = sorted(set(_used_clusters(image)))
        self._random = random.Random(1)

    def work(self) -> list[tuple[int, bytes]]:
        """What is written in the next day: (offset, content)."""
        clusters = self._random.sample(self.used, len(self.used) // 100)
        places = (cluster * CLUSTER + self._random.randrange(0, CLUSTER, BLOCK) for cluster in clusters)
        return [(place, self._random.randbytes(BLOCK)) for place in places]

    def live_a_day(self) -> None:
        """Write it."""
        with self.image.open("r+b") as file:
            for offset, content in self.work():
                file.seek(offset)
                file.write(content)
        os.sync()


def _used_clusters(image: Path) -> Iterator[int]:
    with image.open("rb") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield from range(start // CLUSTER, -(-end // CLUSTER))


class Keeper(Protocol):
    """A program that keeps a history."""

    name: str

    def keep(self) -> Cost:
        """A night."""

    def bring_back(self, folder: Path) -> Cost:
        """Restore the last night, durably, into a folder that is empty."""

    def size(self) -> int:
        """Bytes of all that is kept."""


@dataclass
class Ours:
    """A full archive, and deltas of it. Changing: the archives, oldest first."""

    image: Path
    store: Path
    name: str = "pybackup"
    archives: list[Path] = field(default_factory=list)

    def keep(self) -> Cost:
        """A full archive first, then one of what has changed."""
        archive = self.store / f"night-{len(self.archives):02}.vma.zst"
        base = ["--base", str(self.archives[-1])] if self.archives else []
        cost = run([*PYBACKUP, "run", "-q", *LEVEL, *base, str(self.image), str(archive)])
        self.archives.append(archive)
        return cost

    def bring_back(self, folder: Path) -> Cost:
        """By the newest archive."""
        return restore(self.archives[-1], folder / "back.img")

    def size(self) -> int:
        """Bytes of the archives."""
        return size_of(self.store)


@dataclass
class Borg:
    """A repository without encryption, zstd at level 1."""

    image: Path
    store: Path
    name: str = "borg"
    nights: int = 0

    def __post_init__(self) -> None:
        self._call("init", "-e", "none")

    def _call(self, *words: str, folder: Path | None = None, before: Sequence[str] = ()) -> Cost:
        told = {"BORG_REPO": f"{self.store}/repo", "BORG_BASE_DIR": f"{self.store}-base"}
        settings = [f"{key}={value}" for key, value in told.items()]
        settings.append("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes")
        inside = ["-C", str(folder)] if folder else []
        return run(["env", *inside, *settings, *before, "borg", *words])

    def keep(self) -> Cost:
        """An archive in the repository."""
        self.nights += 1
        return self._call("create", "-C", "zstd,1", f"::{self.nights}", str(self.image))

    def bring_back(self, folder: Path) -> Cost:
        """As its manual says; with --sparse it is faster where holes are large."""
        path = str(self.image).lstrip("/")
        synced = ["sh", "-c", '"$@" && sync "$0"', path]
        return self._call("extract", f"::{self.nights}", folder=folder, before=synced)

    def size(self) -> int:
        """Bytes of the repository."""
        return size_of(self.store)


@dataclass
class Restic:
    """A repository with restic's own choice of compression."""

    image: Path
    store: Path
    name: str = "restic"

    def __post_init__(self) -> None:
        self._call("init")

    def _call(self, *words: str, before: Sequence[str] = ()) -> Cost:
        options = ["-q", "-r", f"{self.store}/repo", "--cache-dir", f"{self.store}-cache"]
        return run(["env", "RESTIC_PASSWORD=bench", *before, "restic", *options, *words])

    def keep(self) -> Cost:
        """A snapshot."""
        return self._call("backup", str(self.image))

    def bring_back(self, folder: Path) -> Cost:
        """Debian 12's knows no holes."""
        synced = ["sh", "-c", '"$@" && sync "$0"', f"{folder}{self.image}"]
        return self._call("restore", "latest", "--target", str(folder), before=synced)

    def size(self) -> int:
        """Bytes of the repository."""
        return size_of(self.store)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def restore(archive: Path, to: Path) -> Cost:
    """Restore an archive to a new file."""
    to.unlink(missing_ok=True)
    return run([*PYBACKUP, "restore", "-q", str(archive), str(to)])


def full(image: Path, archive: Path) -> Cost:
    """A full archive of what the disk holds now."""
    return run([*PYBACKUP, "run", "-q", "--force", *LEVEL, str(image), str(archive)])


@dataclass
class Night:
    """What the programs took for it, and for a full archive of ours; bytes that it added."""

    full: Cost
    costs: dict[str, Cost]
    added: dict[str, int]


class Nights:
    """Nights of one disk. Fixed: all but what is collected of the peaks of memory, in MiB."""

    def __init__(self, table: Table, folder: Path, pristine: Path, rounds: int, title: str) -> None:
        self.table, self.folder, self.rounds, self.title = table, folder, rounds, title
        self.disk = Disk(pristine, folder / "disk.img")
        self.ours = Ours(self.disk.image, made(folder / "ours"))
        self.peaks: list[float] = []

    def row(self, work: str, against: str, limit: float, figures: Sequence[tuple[float, float]], unit: str) -> None:
        """A row of the median of ratios, with the medians of both sides."""
        measured = median(mine / theirs for mine, theirs in figures)
        mine, theirs = (median(side) for side in zip(*figures, strict=True))
        form = (lambda value: f"{value:.2f} s") if unit == "s" else (lambda value: f"{value / 1e6:.2f} MB")
        self.table.row(f"{work}, {self.title}", against, limit, measured, f"{form(mine)}, {form(theirs)}")

    def measure(self) -> None:
        """All of it."""
        others = self._others()
        keepers: list[Keeper] = [self.ours, *others]
        for keeper in keepers:
            cost = self._quiet(keeper.keep)
            self.peaks += [cost.peak] if keeper is self.ours else []
            print(f"first night, {keeper.name}: {cost.wall:.2f} s, {keeper.size():,} bytes", flush=True)
        self._nights([self._night(keepers) for _ in range(NIGHTS - 1)], others)
        self._back(others)
        while len(self.ours.archives) <= CHAIN:
            self.disk.live_a_day()
            self.peaks.append(self._quiet(self.ours.keep).peak)
        self._chain()
        self._index()

    def _others(self) -> list[Keeper]:
        kinds: list[Callable[[Path, Path], Keeper]] = []
        kinds += [Restic] if shutil.which("restic") else []
        kinds += [Borg] if shutil.which("borg") else []
        return [kind(self.disk.image, made(self.folder / kind.__name__)) for kind in kinds]  # type: ignore[attr-defined]

    def _quiet(self, work: Callable[[], Cost]) -> Cost:
        """Do it when nothing waits to be written, which others would pay for."""
        os.sync()
        return work()

    def _night(self, keepers: Sequence[Keeper]) -> Night:
        self.disk.live_a_day()
        before = {keeper.name: keeper.size() for keeper in keepers}
        whole = self._quiet(lambda: full(self.disk.image, self.folder / "full.vma.zst"))
        costs = {keeper.name: self._quiet(keeper.keep) for keeper in keepers}
        self.peaks += [whole.peak, costs[self.ours.name].peak]
        return Night(whole, costs, {keeper.name: keeper.size() - before[keeper.name] for keeper in keepers})

    def _nights(self, nights: Sequence[Night], others: Sequence[Keeper]) -> None:
        mine = [night.costs[self.ours.name].wall for night in nights]
        walls = [night.full.wall for night in nights]
        self.row("a night by digest", "our full `run --level 1`", 0.35, list(zip(mine, walls, strict=True)), "s")
        for other in others:
            walls = [night.costs[other.name].wall for night in nights]
            self.row("a night by digest", f"{other.name}'s", 0.2, list(zip(mine, walls, strict=True)), "s")
        for other in others:
            added = [(night.added[self.ours.name], night.added[other.name]) for night in nights]
            limit = {"restic": 0.35, "borg": 0.1}[other.name]
            self.row("what a night adds", f"{other.name}'s", limit, added, "MB")

    def _back(self, others: Sequence[Keeper]) -> None:
        keepers: list[Keeper] = [self.ours, *others]
        costs: dict[str, list[Cost]] = {keeper.name: [] for keeper in keepers}
        for _ in range(self.rounds):
            for keeper in keepers:
                with tempfile.TemporaryDirectory(dir=self.folder) as back:
                    costs[keeper.name].append(self._quiet(lambda: keeper.bring_back(Path(back))))  # noqa: B023
                    check(self.disk.image, next(path for path in Path(back).rglob("*") if path.is_file()))
        mine = costs.pop(self.ours.name)
        self.peaks += [cost.peak for cost in mine]
        for name, theirs in costs.items():
            limit = {"restic": 0.25, "borg": 0.3}[name]
            self.row("`restore` of the seventh night", f"{name}'s, and `sync`", limit, walls(mine, theirs), "s")

    def _chain(self) -> None:
        newest, whole, merged = self.ours.archives[-1], self.folder / "full.vma.zst", self.folder / "merged.vma.zst"
        back = self.folder / "back.img"
        costs: dict[str, list[Cost]] = {"full": [], "merge": [], "restore": [], "restore full": []}
        for _ in range(self.rounds):
            costs["full"].append(self._quiet(lambda: full(self.disk.image, whole)))
            merge = [*PYBACKUP, "merge", "-q", "--force", *LEVEL, str(newest), str(merged)]
            costs["merge"].append(self._quiet(lambda: run(merge)))  # noqa: B023
            for name, archive in (("restore", newest), ("restore full", whole)):
                costs[name].append(self._quiet(lambda: restore(archive, back)))  # noqa: B023
                check(self.disk.image, back)
        restore(merged, back)
        check(self.disk.image, back)
        back.unlink()
        self.peaks += [cost.peak for some in costs.values() for cost in some]
        against, name = "our `restore` of a full archive", f"`restore` of a chain of {CHAIN}"
        self.row(name, against, 1.3, walls(costs["restore"], costs["restore full"]), "s")
        self.row(f"`merge` of a chain of {CHAIN}", "our full `run`", 0.6, walls(costs["merge"], costs["full"]), "s")

    def _index(self) -> None:
        sizes = [index_and_data(archive) for archive in self.ours.archives[1:]]
        percent = median(100 * index / data for index, data in sizes)
        index, data = (median(side) for side in zip(*sizes, strict=True))
        figures = f"{index:,.0f}, {data:,.0f} bytes"
        self.table.row(f"index of a delta, {self.title}", "percent of its data", 2, percent, figures)


def made(folder: Path) -> Path:
    """A folder, made."""
    folder.mkdir()
    return folder


def check(image: Path, back: Path) -> None:
    """What came back is what the disk holds, or nothing that is measured counts."""
    if not filecmp.cmp(image, back, shallow=False):
        raise SystemExit(f"{back} is not what {image} holds")


def walls(mine: Sequence[Cost], theirs: Sequence[Cost]) -> list[tuple[float, float]]:
    """Seconds of both, pair by pair."""
    return [(one.wall, other.wall) for one, other in zip(mine, theirs, strict=True)]


def index_and_data(archive: Path) -> tuple[int, int]:
    """Bytes of the index, seek table included, and of the frames that hold data."""
    content = archive.read_bytes()
    size = zs.SeekTable.size_from_footer(content[-zs.SEEK_FOOTER.size :], len(content))
    assert size is not None
    table = zs.SeekTable.decode(content[-size:])
    rows = [table.row(number) for number in range(len(table))]
    data = sum(compressed for compressed, decompressed, _ in rows if decompressed)
    return len(content) - data, data
