"""Ctrl-C at any instant: one line, exit code 130, never a traceback; and failures that nobody foresaw."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import PROGRAM, pybackup

INTERRUPTED = """
import os, signal, sys
import pybackup.cli.program

calls, wanted = 0, int(sys.argv.pop(1))

def profile(frame, event, arg):
    global calls
    calls += 1
    if calls == wanted:
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)

def count():
    with open(os.environ["COUNT"], "w") as file:
        file.write(str(calls))

if not wanted:
    import atexit
    atexit.register(count)
sys.setprofile(profile)
pybackup.cli.program.main()
"""
COMMANDS = {
    "run": ["run", "disk.img", "new.vma", "--progress", "rich"],
    "restore": ["restore", "a.vma", "new.img"],
    "info": ["info", "a.vma"],
}


def interrupted(folder: Path, at: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that gets SIGINT at its ``at``-th call of a function; 0: never, calls are counted."""
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(at), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COUNT": "count", "PYTHONWARNINGS": "default"},
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_at_any_instant_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(random.Random(5).randbytes(300_000))
    assert pybackup("run", "disk.img", "a.vma", cwd=tmp_path).code == 0
    assert interrupted(tmp_path, 0, *COMMANDS[command]).returncode == 0
    calls = int((tmp_path / "count").read_text())
    assert calls > 1000
    dice = random.Random()
    for number in range(4):
        at = dice.randint(calls * number // 4 + 1, calls * (number + 1) // 4)
        for made in tmp_path.glob("new*"):
            made.unlink()
        outcome = interrupted(tmp_path, at, *COMMANDS[command])
        lines = outcome.stderr.splitlines()
        told = f"SIGINT at call {at} of {calls}: {outcome}"
        assert "Traceback" not in outcome.stderr and "Warning" not in outcome.stderr, told
        if outcome.returncode:
            assert (outcome.returncode, lines[-1]) == (130, "pybackup: cancelled"), told


def test_the_command_answers_ctrl_c_before_it_imports_anything_else() -> None:
    script = Path(__file__).parents[3] / "cli" / "pybackup"
    broken = (
        "import sys\nclass Interrupt:\n def find_spec(self, *_): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", broken + script.read_text()], capture_output=True, text=True, check=False
    )
    assert (outcome.returncode, outcome.stderr) == (130, "pybackup: cancelled\n")


def limited(what: int, most: int) -> Any:
    """For Popen: a limit of the child."""
    return lambda: resource.setrlimit(what, (most, most))


def test_few_descriptors_are_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"x" * 100_000)
    for most in (5, 6, 7, 8, 9):
        outcome = pybackup("run", "disk.img", "a.vma", cwd=tmp_path, preexec_fn=limited(resource.RLIMIT_NOFILE, most))
        assert outcome.code in (1, 3, 5), outcome
        assert len(outcome.err.splitlines()) == 1 and "open" in outcome.err and "standard output" not in outcome.err
        (tmp_path / "a.vma").unlink(missing_ok=True)


@pytest.mark.parametrize("command", [("serve", "disk.img", "--socket", "s"), ("restore", "a.vma", "b.img")])
def test_few_descriptors_are_told_as_that_by_every_command(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"x" * 100_000)
    assert pybackup("run", "-q", "disk.img", "a.vma", cwd=tmp_path).code == 0
    for most in (5, 6, 7, 8):
        outcome = pybackup(*command, cwd=tmp_path, preexec_fn=limited(resource.RLIMIT_NOFILE, most))
        assert outcome.code in (1, 3, 4, 5), outcome
        assert len(outcome.err.splitlines()) == 1 and "open" in outcome.err and "standard output" not in outcome.err


def test_a_folder_that_is_gone_is_told_as_that(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"x" * 100_000)
    script = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    program = "import sys; sys.argv[0] = 'pybackup'; from pybackup.cli.program import main; main()"
    outcome = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-P", "-c", program, "run", str(disk), "a.vma"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert outcome.stderr == "pybackup: the current folder does not exist any more: go to one that does\n"


BROKEN = """
import sys
from pybackup.core.archive import facts as archive_facts
from pybackup.cli import info
def broken(*arguments, **options):
    {failure}
info.archive_facts = broken
from pybackup.cli.program import main
main()
"""


def broken(failure: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BROKEN.format(failure=failure), "info", "x", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "failure",
    [
        "raise OSError(5, 'Input/output error')",
        "raise PermissionError(13, 'Permission denied', 'somewhere')",
        "raise BrokenPipeError(32, 'Broken pipe')",
        "raise SystemExit(0)",
        "assert False",
    ],
)
def test_a_bug_is_told_as_a_bug(failure: str) -> None:
    quiet = broken(failure)
    assert quiet.returncode == 1
    assert len(quiet.stderr.splitlines()) == 1
    assert "a bug" in quiet.stderr and "<string>:6" in quiet.stderr and "standard output" not in quiet.stderr
    assert "Traceback" in broken(failure, PYBACKUP_DEBUG="1").stderr


@pytest.mark.parametrize(
    ("failure", "word"),
    [
        ('raise RuntimeError("can\'t start new thread")', "threads"),
        ("raise MemoryError", "memory"),
        ("raise OSError(24, 'Too many open files')", "files"),
        ("raise BlockingIOError(11, 'Resource temporarily unavailable')", "processes"),
    ],
)
def test_what_the_process_lacks_is_one_sentence(failure: str, word: str) -> None:
    outcome = broken(failure)
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (1, 1)
    assert word in outcome.stderr and "bug" not in outcome.stderr


def test_messages_that_nobody_can_read_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"x" * 100_000)
    for number, progress in enumerate(("plain", "rich", "json")):
        with open("/dev/full", "wb") as full:
            outcome = subprocess.run(
                [*PROGRAM, "run", "disk.img", f"{number}.vma", "--progress", progress],
                cwd=tmp_path,
                stderr=full,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        assert outcome.returncode == 0
