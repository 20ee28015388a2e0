"""The live half of `make bench`: fio's NBD engine against us, qemu-nbd and qemu-storage-daemon, on the same file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Table

PYBACKUP = str(Path(sys.executable).with_name("pybackup"))
SIZE = 1 << 30
SECONDS = 5
ROUNDS = 3
"""Pairs of runs that are compared without a backup."""
SLOW = 10_000_000
"""Bytes a second of the slow sink."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What fio measured: requests a second, bytes a second, and the 99th percentile of the latency in ms."""

    iops: float
    bandwidth: float
    p99: float


def fio(uri: str, pattern: str, block: str, seconds: int) -> Speed:
    """Run fio at queue depth 16."""
    command = [
        *("fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", f"--rw={pattern}", f"--bs={block}", "--iodepth=16"),
        *("--size=1G", "--time_based", f"--runtime={seconds}", "--output-format=json", "--randrepeat=0"),
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    job = json.loads(text[text.index("{") :])["jobs"][0]
    side = job["read" if "read" in pattern else "write"]
    return Speed(side["iops"], side["bw_bytes"], side["clat_ns"]["percentile"]["99.000000"] / 1e6)


def measure(table: Table, folder: Path) -> None:
    """Fill the table."""
    missing = [name for name in ("fio", "qemu-nbd", "qemu-storage-daemon", "qemu-img") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"the benchmark needs {', '.join(missing)}")
    image = folder / "live.img"
    fill(image, 65536)
    compare_servers(table, image, "randwrite", "4k", 1.5, ", file written in steps of 64 KiB")
    image.unlink()
    fill(image, 4096)
    for pattern, block, limit in (
        ("randwrite", "4k", 2),
        ("randread", "4k", 2.5),
        ("read", "1M", 1),
        ("write", "1M", 1),
    ):
        compare_servers(table, image, pattern, block, limit)
    with_backup(table, image, folder)
    image.unlink()


def fill(image: Path, step: int) -> None:
    """A file that compresses to about half, written in steps of so many bytes.

    The kernel keeps what is written at once together in its cache, and ext4 then goes through all of it for each small
    write, whoever makes it: a guest that writes single blocks leaves single pages behind.
    """
    half = os.urandom(32768)
    with image.open("wb", buffering=0) as file:
        for number in range(SIZE // 65536):
            turn = number % 32768
            piece = half[turn:] + half[:turn] + bytes([number % 255 + 1]) * 32768
            for at in range(0, len(piece), step):
                file.write(piece[at : at + step])
        os.fsync(file.fileno())


@contextlib.contextmanager
def ours(image: Path, *options: str) -> Iterator[tuple[str, str]]:
    """Our server: (URI, control socket)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [PYBACKUP, "serve", f"a={image}", "--socket", f"{folder}/nbd", "--control", f"{folder}/ctl", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        uri = process.stdout.readline().strip()
        process.stdout.readline()
        try:
            yield uri, f"{folder}/ctl"
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def qemu_nbd(image: Path) -> Iterator[str]:
    """qemu-nbd on the same file."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/nbd"
        options = ["-f", "raw", "--cache=writeback", "--persistent", "-e", "8", "-k", path, "-x", "a"]
        process = subprocess.Popen(["qemu-nbd", *options, str(image)])
        wait_for(lambda: os.path.exists(path))
        try:
            yield f"nbd+unix:///a?socket={path}"
        finally:
            process.terminate()
            process.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; give up after ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("a server did not start")
        time.sleep(0.02)


def compare_servers(table: Table, image: Path, pattern: str, block: str, limit: float, note: str = "") -> None:
    """Without any backup: the pair in the middle of some."""
    pairs = []
    for _ in range(ROUNDS):
        with ours(image) as (uri, _control):
            mine = fio(uri, pattern, block, SECONDS).iops
        with qemu_nbd(image) as uri:
            pairs.append((mine / fio(uri, pattern, block, SECONDS).iops, mine))
    ratio, mine = sorted(pairs)[ROUNDS // 2]
    figures = f"{mine:,.0f}/s, {mine / ratio:,.0f}/s"
    table.row(f"{pattern} {block}, no backup{note}", "qemu-nbd", limit, ratio, figures, least=True)


@contextlib.contextmanager
def backups(control: str, output: Path, *options: str) -> Iterator[None]:
    """One backup after the other, for as long as the body runs."""
    loop = f'while "{PYBACKUP}" run -q -f {" ".join(options)} "serve:{control}" "{output}"; do :; done'
    process = subprocess.Popen(
        ["sh", "-c", loop], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: status(control)["job"] is not None)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        # Nobody of the group lives when the pipe ends.
        process.communicate()
        output.unlink(missing_ok=True)


def status(control: str) -> dict[str, Any]:
    """The server's status."""
    text = subprocess.run([PYBACKUP, "ctl", control, "status", "--json"], capture_output=True, check=True).stdout
    answer: dict[str, Any] = json.loads(text)
    return answer


def with_backup(table: Table, image: Path, folder: Path) -> None:
    """While backups run; unlimited ones in turn with those of qemu-storage-daemon."""
    output = folder / "live.vma"
    rounds = []
    for _ in range(ROUNDS):
        with ours(image, "--fleece", str(folder)) as (uri, control):
            idle = fio(uri, "randwrite", "4k", SECONDS)
            with backups(control, output, "--level", "1"):
                busy = fio(uri, "randwrite", "4k", 10)
        mine, theirs = busy.iops / idle.iops, storage_daemon(image, folder)
        rounds.append((mine / theirs, mine, theirs, f"{busy.iops:,.0f}/s, {idle.iops:,.0f}/s"))
    middle = sorted(rounds, key=lambda one: one[1])[ROUNDS // 2]
    name = "randwrite 4k while a backup runs"
    table.row(f"{name}, unlimited", "ourselves, idle", 0.4, middle[1], middle[3], least=True)
    ratio, mine, theirs, _ = sorted(rounds)[ROUNDS // 2]
    figures = f"{mine:.2f}, {theirs:.2f}"
    table.row("busy/idle while a backup runs", "qemu-storage-daemon's", 1.0, ratio, figures, least=True)
    with ours(image, "--fleece", str(folder)) as (uri, control):
        idle = fio(uri, "randwrite", "4k", SECONDS)
        with backups(control, output, "--level", "1", "--speed", "50M"):
            busy = fio(uri, "randwrite", "4k", 20)
        with slow_backup(control):
            slow = fio(uri, "randwrite", "4k", 20)
    figures = f"{busy.iops:,.0f}/s, {idle.iops:,.0f}/s"
    table.row(f"{name} at 50M", "ourselves, idle", 0.7, busy.iops / idle.iops, figures, least=True)
    figures = f"{slow.p99:.2f} ms, {idle.p99:.2f} ms"
    table.row("p99 of it, archive at 10 MB/s", "ourselves, idle", 3, slow.p99 / idle.p99, figures)


@contextlib.contextmanager
def slow_backup(control: str) -> Iterator[None]:
    """A backup whose archive goes through a pipe of 10 MB/s."""
    process = subprocess.Popen([PYBACKUP, "run", "-q", f"serve:{control}", "-"], stdout=subprocess.PIPE)
    drain = f"import os, time\nwhile part := os.read(0, 1 << 18): time.sleep(len(part) / {SLOW})\n"
    reader = subprocess.Popen([sys.executable, "-c", drain], stdin=process.stdout)
    assert process.stdout is not None
    process.stdout.close()
    wait_for(lambda: status(control)["job"] is not None)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        reader.wait()


def storage_daemon(image: Path, folder: Path) -> float:
    """qemu-storage-daemon's rate while blockdev-backup runs, against its own idle rate."""
    target = folder / "qsd.qcow2"
    with tempfile.TemporaryDirectory() as private:
        nbd, qmp = f"{private}/nbd", f"{private}/qmp"
        command = [
            *("qemu-storage-daemon", "--blockdev", f"driver=file,filename={image},node-name=f"),
            *("--blockdev", "driver=raw,file=f,node-name=d"),
            *("--nbd-server", f"addr.type=unix,addr.path={nbd}"),
            *("--export", "type=nbd,id=e,node-name=d,name=a,writable=on"),
            *("--chardev", f"socket,id=m,path={qmp},server=on,wait=off", "--monitor", "chardev=m"),
        ]
        process = subprocess.Popen(command)
        wait_for(lambda: os.path.exists(qmp) and os.path.exists(nbd))
        uri = f"nbd+unix:///a?socket={nbd}"
        idle = fio(uri, "randwrite", "4k", SECONDS)
        with contextlib.closing(Monitor(qmp)) as monitor, daemon_backups(monitor, target):
            busy = fio(uri, "randwrite", "4k", 10)
        process.terminate()
        process.wait()
    return busy.iops / idle.iops


@contextlib.contextmanager
def daemon_backups(monitor: Monitor, target: Path) -> Iterator[None]:
    """One backup of qemu-storage-daemon's after the other, for as long as the body runs."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(target), str(SIZE)], check=True)
            file = {"driver": "file", "filename": str(target)}
            monitor.ask("blockdev-add", {"driver": "qcow2", "node-name": "t", "file": file})
            monitor.ask("blockdev-backup", {"job-id": "b", "device": "d", "target": "t", "sync": "full"})
            monitor.wait_for("BLOCK_JOB_COMPLETED", over)
            if over.is_set():
                monitor.ask("block-job-cancel", {"device": "b", "force": True})
                return
            monitor.ask("blockdev-del", {"node-name": "t"})
            target.unlink()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        target.unlink(missing_ok=True)


class Monitor:
    """Just enough of QMP."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(path)
        self._rest = b""
        self._events: list[str] = []
        self._line(None)
        self.ask("qmp_capabilities", {})

    def ask(self, command: str, arguments: dict[str, Any]) -> None:
        """Send a command and wait for its answer."""
        self._sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while "return" not in (answer := self._line(None) or {}):
            if "error" in answer:
                raise SystemExit(f"qemu-storage-daemon: {answer['error']['desc']}")
            self._events.append(str(answer.get("event")))

    def wait_for(self, event: str, over: threading.Event) -> None:
        """Return when the event has come, or it is all over."""
        while event not in self._events and not over.is_set():
            message = self._line(0.1)
            self._events.append(str((message or {}).get("event")))
        self._events.clear()

    def _line(self, timeout: float | None) -> dict[str, Any] | None:
        self._sock.settimeout(timeout)
        while b"\n" not in self._rest:
            try:
                self._rest += self._sock.recv(65536)
            except TimeoutError:
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """End the connection."""
        self._sock.close()
