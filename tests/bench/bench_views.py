"""The views of an archive in `make bench`: served and mounted, beside qemu-nbd on a compressed qcow2 and zstd.

Needs fio (with its nbd engine), qemu-nbd, qemu-img, nbdcopy, zstd, mke2fs and FUSE; STRESS_KERNEL names an unpacked
kernel, as for `make stress`: without it, no guest boots.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import bench_boot
import make_image
from bench_live import Speed, wait_for
from measure import Cost, Table, median, pairs, ratio, run

PYBACKUP = str(Path(sys.executable).with_name("pybackup"))
SECONDS = 5
TIB, STEP = 1 << 40, 100 << 30
"""Bytes of the large disk, and from one MiB of data on it to the next."""
PROGRAMS = ("fio", "qemu-nbd", "qemu-img", "nbdcopy", "zstd", "mke2fs", "fusermount3")


def measure(table: Table, folder: Path, rounds: int) -> None:
    """Fill the table; what is made on the way is removed, but for the disk."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"the benchmark needs {', '.join(missing)}")
    image = folder / "share.img"
    if not image.exists():
        make_image.make(image, "/usr/share", 2 << 30, 800_000_000)
    peaks: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        private = Path(name)
        archive, qcow2 = private / "share.vma.zst", private / "share.qcow2"
        run([PYBACKUP, "run", "-q", "--level", "1", str(image), str(archive)])
        run(["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", str(image), str(qcow2)])
        at_random(table, archive, qcow2, rounds, peaks)
        one_pass(table, archive, rounds, peaks)
        mounted(table, private, rounds, peaks)
        boots(table, private, image, archive, peaks)
    table.row("peak memory of any of these", "MiB", 250, max(peaks), f"{max(peaks):.0f} MiB")


# -- servers --


@contextlib.contextmanager
def server(command: Sequence[str], there: Callable[[], bool], peaks: list[float]) -> Iterator[None]:
    """A program that serves within the body; how much memory it took at most is added in the end (MiB)."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(there)
        yield
    finally:
        process.terminate()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peaks.append(usage.ru_maxrss / 1024)


@contextlib.contextmanager
def served(archive: Path, peaks: list[float]) -> Iterator[str]:
    """`pybackup serve ARCHIVE`: the URI of its only drive."""
    with tempfile.TemporaryDirectory() as private:
        socket = Path(private, "nbd")
        with server([PYBACKUP, "serve", "-q", str(archive), "--socket", str(socket)], socket.exists, peaks):
            yield f"nbd+unix:///share?socket={socket}"


@contextlib.contextmanager
def qemu_nbd(qcow2: Path) -> Iterator[str]:
    """qemu-nbd on the compressed image: its URI."""
    with tempfile.TemporaryDirectory() as private:
        socket = Path(private, "nbd")
        options = ["-r", "--persistent", "-e", "8", "-f", "qcow2", "-x", "share", "-k", str(socket)]
        with server(["qemu-nbd", *options, str(qcow2)], socket.exists, []):
            yield f"nbd+unix:///share?socket={socket}"


# -- rows --


def at_random(table: Table, archive: Path, qcow2: Path, rounds: int, peaks: list[float]) -> None:
    """Reads of 64 KiB at random places, each reader with one in flight."""
    for readers, name in ((1, "one reader"), (4, "four readers")):
        found: list[tuple[Speed, Speed]] = []
        for _ in range(rounds):
            with served(archive, peaks) as uri:
                ours = random_reads(uri, readers)
            with qemu_nbd(qcow2) as uri:
                found.append((ours, random_reads(uri, readers)))
        work = f"64 KiB at random through `serve ARCHIVE`, {name}"
        ours, theirs = in_the_middle(found, lambda speed: speed.iops)
        figures = f"{ours.iops:,.0f}/s, {theirs.iops:,.0f}/s"
        table.row(work, "qemu-nbd, zstd qcow2", 0.5, ours.iops / theirs.iops, figures, least=True)
        if readers == 1:
            ours, theirs = in_the_middle(found, lambda speed: speed.p99)
            figures = f"{ours.p99:.2f} ms, {theirs.p99:.2f} ms"
            table.row("p99 of it", "qemu-nbd, zstd qcow2", 4, ours.p99 / theirs.p99, figures)


def random_reads(uri: str, readers: int) -> Speed:
    """What fio measures of all readers together."""
    command = [
        *("fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", "--rw=randread", "--bs=64k", "--iodepth=1"),
        *(f"--numjobs={readers}", "--group_reporting", "--size=2G", "--time_based", f"--runtime={SECONDS}"),
        *("--output-format=json", "--randrepeat=0"),
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    side = json.loads(text[text.index("{") :])["jobs"][0]["read"]
    return Speed(side["iops"], side["bw_bytes"], side["clat_ns"]["percentile"]["99.000000"] / 1e6)


def in_the_middle(found: Sequence[tuple[Speed, Speed]], what: Callable[[Speed], float]) -> tuple[Speed, Speed]:
    """The pair whose ratio is the median."""
    return sorted(found, key=lambda pair: what(pair[0]) / what(pair[1]))[len(found) // 2]


def one_pass(table: Table, archive: Path, rounds: int, peaks: list[float]) -> None:
    """All of the disk once, from its beginning to its end."""
    with served(archive, peaks) as uri:
        ours, theirs = pairs(
            lambda: run(["nbdcopy", uri, "null:"]), lambda: run(["zstd", "-q", "-dc", str(archive)]), rounds
        )
    figures = f"{median(ours, wall):.2f} s, {median(theirs, wall):.2f} s"
    table.row("`nbdcopy` of `serve ARCHIVE` to `null:`", "`zstd -dc`", 1.25, ratio(ours, theirs, wall), figures)


def wall(cost: Cost) -> float:
    """Seconds on the clock."""
    return cost.wall


def mounted(table: Table, private: Path, rounds: int, peaks: list[float]) -> None:
    """A mount of an archive of 1 TiB, until a byte of its drive is there."""
    disk, archive, folder = private / "large.img", private / "large.vma.zst", private / "mnt"
    folder.mkdir()
    with disk.open("wb") as file:
        file.truncate(TIB)
        for at in range(STEP, TIB, STEP):
            os.pwrite(file.fileno(), os.urandom(1 << 20), at)
    run([PYBACKUP, "run", "-q", "--level", "1", str(disk), str(archive)])
    found = sorted(first_byte(archive, folder, peaks) for _ in range(rounds))[rounds // 2]
    table.row("`mount` of an archive of 1 TiB, to its first byte", "seconds", 0.5, found, f"{found:.2f} s")


def first_byte(archive: Path, folder: Path, peaks: list[float]) -> float:
    """Seconds from the start of the program until a byte that is no zero was read."""
    drive = folder / "large.raw"
    started = time.perf_counter()
    with server([PYBACKUP, "mount", str(archive), str(folder)], drive.exists, peaks):
        with drive.open("rb", buffering=0) as file:
            assert file.read(1) == b"\0"
            assert any(os.pread(file.fileno(), 4096, 5 * STEP))
        return time.perf_counter() - started


def boots(table: Table, private: Path, image: Path, archive: Path, peaks: list[float]) -> None:
    """A guest that boots, mounts its disk and reads of it, from a live restore that has just begun, and from the disk.

    The time of the server's start counts.
    """
    guest = bench_boot.guest(private)
    if guest is None:
        print("STRESS_KERNEL names no kernel: no row of a guest that boots", flush=True)
        return
    target, socket = private / "live.raw", private / "live.nbd"
    raw = guest(f"file={image},snapshot=on")
    started = time.perf_counter()
    options = ["--socket", str(socket), "--control", str(private / "live.control")]
    command = [PYBACKUP, "restore", "-q", "--live", str(archive), str(target), *options]
    with server(command, socket.exists, peaks):
        guest(f"file=nbd+unix:///share?socket={socket}")
        live = time.perf_counter() - started
    work = "a guest boots through `restore --live`"
    table.row(work, "from the raw disk", 1.5, live / raw, f"{live:.1f} s, {raw:.1f} s")
