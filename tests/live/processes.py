"""Real processes: a server, its clients, and how to wait for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pybackup.core.live.control_client import ask

PYBACKUP = str(Path(sys.executable).with_name("pybackup"))
DEADLINE = 60.0
"""Seconds after which a test that waits for something fails; never reached when all is well."""


def call(*arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run pybackup to its end, which must be this exit code."""
    done = subprocess.run([PYBACKUP, *arguments], capture_output=True, text=True, timeout=DEADLINE, **options)
    assert done.returncode == code, f"{arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def until(condition: Callable[[], Any], seconds: float = DEADLINE) -> None:
    """Look again and again until this is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"


class Server:
    """A running `pybackup serve` with sockets in a folder of its own."""

    def __init__(self, process: subprocess.Popen[str], lines: Sequence[str]) -> None:
        self.process, self.lines = process, lines
        self.clients: list[subprocess.Popen[str]] = []
        self.control = lines[-1].removeprefix("serve:")
        self.nbd = lines[0].rpartition("socket=")[2]

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return ask(self.control, {"command": command, **arguments})

    def job(self) -> dict[str, Any] | None:
        job: dict[str, Any] | None = self.ask("status")["job"]
        return job

    def is_armed(self) -> bool:
        return all(drive["armed"] for drive in self.ask("status")["drives"])

    def start_backup(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """A backup that has its instant, and does not come to an end by itself for a long time."""
        client = self.start_client(*arguments, "--speed", "64K", **options)
        until(self.is_armed)
        return client

    def start_client(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [PYBACKUP, "run", f"serve:{self.control}", *arguments]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        self.clients.append(client)
        return client

    def stop(self) -> None:
        """SIGTERM must end it well."""
        if self.process.poll() is None:
            self.process.terminate()
        end = ended(self.process)
        assert end in ((0, ""), (0, None)), end


@contextlib.contextmanager
def served(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, private: bool = False, **options: Any
) -> Iterator[Server]:
    """A server that is ready; it must end without a complaint, unless ``stderr`` leads elsewhere."""
    where = [] if private else ["--control", str(folder / "control.sock"), "--socket", str(folder / "nbd.sock")]
    with start([PYBACKUP, "serve", *where, *arguments], environment, **options) as server:
        yield server


@contextlib.contextmanager
def start(command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any) -> Iterator[Server]:
    """The same for any command line that becomes a server."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        **{"stderr": subprocess.PIPE, **options},
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith("serve:"):
            break
    clients: list[subprocess.Popen[str]] = []
    try:
        assert lines, ended(process)
        server = Server(process, lines)
        clients = server.clients
        yield server
        if process.poll() is None:
            server.stop()
    finally:
        for one in (process, *clients):
            _kill(one)


def _kill(process: subprocess.Popen[str]) -> None:
    """After a test that failed nothing runs on."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; its exit code and what it said on stderr."""
    _, said = process.communicate(timeout=DEADLINE)
    return process.returncode, said


def interrupt(process: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str]:
    """Send a signal and wait."""
    process.send_signal(number)
    return ended(process)


def restored(archive: Path, folder: Path) -> dict[str, bytes]:
    """Every drive of an archive, which must be sound."""
    call("verify", str(archive))
    folder.mkdir()
    call("restore", str(archive), str(folder))
    return {drive["name"]: (folder / f"{drive['name']}.raw").read_bytes() for drive in info(archive)["drives"]}


def info(archive: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call("info", "--json", str(archive)).stdout)
    return found
