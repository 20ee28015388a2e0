"""Exit code, commands that are told, metrics, and what lies under the name agree, whenever a signal comes."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
from pathlib import Path

import pytest
from archives import decode
from command_line import PROGRAM, end, listing, pybackup, start, wait_until

DISK = random.Random(10).randbytes(300_000)
HOOKS = ("--on-success", "echo good >> told", "--on-failure", "echo bad >> told", "--metrics-file", "m.prom")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "disk.img").write_bytes(DISK)
    return tmp_path


def agrees(folder: Path, code: int, *, unless: tuple[int, ...] = ()) -> bool:
    """Whether all agree that it succeeded; an error where they do not agree."""
    is_there = (folder / "out.vma").exists()
    assert is_there == (code == 0), listing(folder)
    if is_there:
        assert decode((folder / "out.vma").read_bytes()).drives == {"disk": DISK}
    assert (folder / "told").read_text() == ("good\n" if is_there else "bad\n")
    assert f'pybackup_exit_code{{archive="out.vma",job="disk"}} {code}\n' in (folder / "m.prom").read_text()
    assert set(listing(folder)) <= {"disk.img", "out.vma", "told", "m.prom"}
    return is_there


def test_files_that_run_out_at_any_moment(folder: Path) -> None:
    outcomes = set()
    for most in range(5, 40):

        def limited(most: int = most) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

        for name in ("out.vma", "told", "m.prom"):
            (folder / name).unlink(missing_ok=True)
        code = subprocess.run(
            [*PROGRAM, "run", "disk.img", "out.vma"],
            cwd=folder,
            preexec_fn=limited,
            stderr=subprocess.PIPE,
            check=False,
        ).returncode
        assert (folder / "out.vma").exists() == (code == 0)
        assert set(listing(folder)) <= {"disk.img", "out.vma"}
        outcomes.add(code == 0)
        if code == 0 and most > 20:
            break
    assert True in outcomes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_when_the_archive_has_its_name_is_too_late(folder: Path, number: signal.Signals) -> None:
    """Sent again and again from the moment on at which the name is there, to the end of the program."""
    process = start("run", "disk.img", "out.vma", "--on-success", "echo good >> told", cwd=folder)
    wait_until(lambda: (folder / "out.vma").exists(), "the archive", [process])
    while process.poll() is None and not (folder / "told").exists():
        process.send_signal(number)
        os.sched_yield()
    code, _, said = end(process)
    # A signal that comes while the command runs ends that, and is told so; the archive is there in any case.
    assert (code, said) in ((0, ""), (128 + number, "pybackup: cancelled; the archive is complete\n"))
    assert decode((folder / "out.vma").read_bytes()).drives == {"disk": DISK}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_up_to_the_end_of_a_plain_run(folder: Path, number: signal.Signals) -> None:
    process = start("run", "disk.img", "out.vma", cwd=folder)
    wait_until(lambda: (folder / "out.vma").exists(), "the archive", [process])
    while process.poll() is None:
        process.send_signal(number)
        os.sched_yield()
    assert end(process) == (0, b"", "")


def test_a_signal_at_any_moment(folder: Path) -> None:
    """Each time a little later than the time before, until it is too late for the last time."""
    seen = set()
    for trace in ("job.state", "copy.read", "archive.extent", "archive.finish"):
        for name in ("out.vma", "told", "m.prom"):
            (folder / name).unlink(missing_ok=True)
        process = start("run", "disk.img", "out.vma", *HOOKS, "--trace", trace, cwd=folder)
        assert process.stderr is not None
        assert process.stderr.readline()
        code = end(process, signal.SIGTERM).code
        assert code in (0, 143)
        seen.add(agrees(folder, code))
    assert seen


def test_a_report_that_nobody_can_read_is_no_failure_of_the_backup(folder: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = pybackup("run", "--json", "disk.img", "out.vma", *HOOKS, cwd=folder, stdout=full)
    assert done.code == 0
    assert done.err == (
        "pybackup: warning: cannot write the standard output: No space left on device; all else is done\n"
    )
    assert agrees(folder, 0)


def test_a_second_signal_does_not_keep_the_first_from_being_told(folder: Path) -> None:
    hook = "touch begun; while [ ! -e go ]; do sleep 0.01; done; echo bad >> told"
    process = start(
        *("run", "--speed", "64K", "--compress", "none", "disk.img", "out.vma", "--metrics-file", "m.prom"),
        *("--on-failure", hook),
        cwd=folder,
    )
    partial = folder / ".out.vma.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 0, "the partial file", [process])
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: (folder / "begun").exists(), "the command", [process])
    (folder / "go").touch()
    assert end(process).code == 143
    assert not (folder / "out.vma").exists()
    assert "pybackup_exit_code" in (folder / "m.prom").read_text()
