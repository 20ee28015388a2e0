"""A night that QEMU's dirty bitmaps make short, against the same by digest: a storage daemon, and a guest over NBD."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Protocol

from bench_live import wait_for
from measure import Cost, Table, run

PYBACKUP = str(Path(sys.executable).with_name("pybackup"))
PAIRS = 3


class Worked(Protocol):
    """A disk that somebody works on."""

    image: Path

    def work(self) -> list[tuple[int, bytes]]:
        """What is written in the next day."""


def measure(table: Table, folder: Path, disk: Worked, title: str) -> list[float]:
    """Two rows, and the peaks of memory in MiB."""
    whole: list[Cost] = []
    pairs: list[tuple[Cost, Cost]] = []
    with daemon(folder, disk.image) as (monitor, guests):
        nights = Nights(folder, disk, monitor, guests)
        whole.append(nights.night(None))
        for _ in range(PAIRS):
            by_bitmap = nights.night("bitmap")
            run([PYBACKUP, "run", "-q", "--forget", f"qmp:{monitor}"])
            pairs.append((by_bitmap, nights.night("digest")))
    measured = median(mine.wall / theirs.wall for mine, theirs in pairs)
    mine, theirs = (median(cost.wall for cost in side) for side in zip(*pairs, strict=True))
    figures = f"{mine:.2f} s, {theirs:.2f} s"
    table.row(f"a night by QEMU's bitmap, {title}", "by digest, of the same QEMU", 0.3, measured, figures)
    return [cost.peak for cost in [*whole, *(cost for pair in pairs for cost in pair)]]


class Nights:
    """Changing: the archives, by their number."""

    def __init__(self, folder: Path, disk: Worked, monitor: str, guests: str) -> None:
        self._folder, self._disk, self._monitor, self._guests = folder, disk, monitor, guests
        self._made = 0

    def night(self, way: str | None) -> Cost:
        """A day's work, and a night that must go this way; None: the first, which is a full archive."""
        base: Sequence[str] = ("--incremental",)  # nothing to go on from yet, but QEMU shall take notes
        if self._made:
            self._live_a_day()
            base = ("--base", str(self._archive(self._made - 1)))
        report = self._folder / "report.json"
        command = [PYBACKUP, "run", "-q", "--json", "--level", "1", "--nbd-socket", self._guests, *base]
        os.sync()
        cost = run([*command, f"qmp:{self._monitor}", str(self._archive(self._made))], stdout=str(report))
        self._made += 1
        told = json.loads(report.read_text()).get("ways", ())
        if way is not None and {one["way"] for one in told} != {way}:
            raise SystemExit(f"a night did not go by {way}: {told}")
        return cost

    def _archive(self, number: int) -> Path:
        return self._folder / f"night-{number}.vma.zst"

    def _live_a_day(self) -> None:
        writes = [f"write -q -P {content[0]} {offset} {len(content)}" for offset, content in self._disk.work()]
        commands = [word for write in writes for word in ("-c", write)]
        uri = f"nbd+unix:///d?socket={self._guests}"
        subprocess.run(["qemu-io", "-f", "raw", *commands, "-c", "flush", uri], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def daemon(folder: Path, image: Path) -> Iterator[tuple[str, str]]:
    """A storage daemon with the disk: the sockets of its monitor, and of its NBD server."""
    nbd, qmp = f"{folder}/nbd", f"{folder}/qmp"
    command = [
        *("qemu-storage-daemon", "--blockdev", f"driver=file,filename={image},node-name=f"),
        *("--blockdev", "driver=raw,file=f,node-name=d"),
        *("--nbd-server", f"addr.type=unix,addr.path={nbd}"),
        *("--export", "type=nbd,id=e,node-name=d,name=d,writable=on"),
        *("--chardev", f"socket,id=m,path={qmp},server=on,wait=off", "--monitor", "chardev=m"),
    ]
    process = subprocess.Popen(command)
    try:
        wait_for(lambda: os.path.exists(qmp) and os.path.exists(nbd))
        yield qmp, nbd
    finally:
        process.terminate()
        process.wait()
