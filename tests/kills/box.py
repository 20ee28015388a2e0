"""A folder in which one situation is played again and again, and how to see what is left of a program that was killed.

Everything that a run may use lies within: the temporary folder, the home, the records of uploads. A mark in the
environment tells its processes, and those that it has started, from all others of the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from live.processes import DEADLINE, PYBACKUP, until

MARK = "PYBACKUP_KILLS"


class Ended(NamedTuple):
    """How a command ended; ``code`` is negative for a signal."""

    code: int
    out: bytes
    said: str


class Box:
    """Fixed: the folders. Changing: what lies in them, and what is remembered of it; one thread plays here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.tmp, self.home = folder, folder / "work", folder / "tmp", folder / "home"
        for part in (self.work, self.tmp, self.home):
            part.mkdir(parents=True)
        self.cleaning = contextlib.ExitStack()
        """What has to be given back when nobody plays here any more: servers, loop devices."""
        self._out, self._said = folder / "out", folder / "said"
        self._kept: dict[str, tuple[bytes, int]] = {}
        self.arguments: list[str] = []
        """What a situation has found out when it was laid: the sources, the right result, another place."""
        self.wanted: bytes | None = None
        self.place: Any = None
        self.environment = {
            **os.environ,
            "TMPDIR": str(self.tmp),
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_RUNTIME_DIR": str(self.tmp),
            MARK: str(folder),
        }

    # -- programs --

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command in the work folder.

        What it prints goes to files: whether all end that could hold a pipe is the question here, so nobody waits for
        a pipe's end.
        """
        with self._out.open("wb") as out, self._said.open("wb") as said:
            return subprocess.Popen(
                command, cwd=self.work, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=said
            )

    def end(self, process: subprocess.Popen[bytes]) -> Ended:
        """Wait for the end of what start() has started last."""
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{process.args!r} did not end; it said: {self._said.read_text()}") from None
        return Ended(process.returncode, self._out.read_bytes(), self._said.read_text(errors="replace"))

    def printed(self) -> str:
        """What start()'s command has printed so far."""
        return self._out.read_text(errors="replace")

    def call(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> Ended:
        """Run pybackup to its end, which must be one of these exit codes."""
        done = self.end(self.start([PYBACKUP, *arguments]))
        assert done.code in codes, f"{arguments} ended with {done.code}: {done.said}"
        assert "Traceback" not in done.said, done.said
        return done

    def program(self, *command: str) -> str:
        """Run another program, which must succeed; what it printed."""
        done = subprocess.run(command, cwd=self.work, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def stand(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program that stays as long as the box: its end is no matter of a kill."""
        process = subprocess.Popen(
            command,
            cwd=self.work,
            env={**self.environment, MARK: ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.cleaning.callback(process.wait)
        self.cleaning.callback(process.terminate)
        return process

    # -- files --

    def path(self, name: str) -> Path:
        return self.work / name

    def content(self, name: str) -> bytes | None:
        """What lies under a name; None where nothing does."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes | None) -> None:
        """Let this lie under a name, or nothing."""
        if content is None:
            self.path(name).unlink(missing_ok=True)
        else:
            self.path(name).write_bytes(content)

    def source(self, name: str, content: bytes | None = None) -> None:
        """A file that nobody may change, made here unless it is there."""
        if content is not None:
            self.put(name, content)
        self._kept[name] = self._look(name)

    def _look(self, name: str) -> tuple[bytes, int]:
        return self.path(name).read_bytes(), self.path(name).stat().st_mtime_ns

    def names(self) -> set[str]:
        """Everything in the work folder, and in folders within."""
        return {str(path.relative_to(self.work)) for path in self.work.rglob("*") if not path.is_dir()}

    # -- what must hold --

    def check_sources(self) -> None:
        for name, kept in self._kept.items():
            assert self._look(name) == kept, f"the source {name} has changed"

    def check_clean(self, also: set[str]) -> None:
        """Nothing lies around but the sources and these names; nothing at all in the temporary folder."""
        extra = self.names() - set(self._kept) - also
        assert not extra, f"left in the folder: {sorted(extra)}"
        left = sorted(str(path.relative_to(self.tmp)) for path in self.tmp.rglob("*") if not _is_a_probe(path))
        assert not left, f"left in the temporary folder: {left}"
        records = [str(path) for path in self.home.rglob("*") if not path.is_dir()]
        assert not records, f"left in the home: {records}"

    def wait_for_quiet(self) -> None:
        """A process that was killed takes along all that it has started, after a time of grace at most."""
        end = time.monotonic() + DEADLINE / 2
        while left := dict(_processes(str(self.folder))):
            assert time.monotonic() < end, f"these outlive the one that was killed: {left}"
            time.sleep(0.005)  # leaves the processor to them

    def empty(self) -> None:
        """End and remove what a game left that failed."""
        for number in dict(_processes(str(self.folder))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        until(lambda: not dict(_processes(str(self.folder))))
        self.cleaning.close()
        shutil.rmtree(self.folder)


def _is_a_probe(path: Path) -> bool:
    """Whether it is what Python's tempfile writes, and removes, to see that it can."""
    return len(path.name) == 8 and path.is_file() and path.read_bytes() in (b"", b"blat")


def _processes(mark: str) -> Iterator[tuple[int, str]]:
    """Processes with this mark, and their command lines; one that has ended has neither."""
    wanted = f"{MARK}={mark}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ")
                yield int(entry), line.decode(errors="replace")
