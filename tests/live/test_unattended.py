"""Runs that nobody watches, as cron and systemd start them: real commands, locks, signals and hooks."""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import socket
from pathlib import Path

import pytest
from archives import decode
from command_line import end, listing, pybackup, start, wait_until
from live.processes import served

from pybackup.core.system.image_lock import ImageLock

DISK = random.Random(4).randbytes(3 << 20) + bytes(1 << 20)
SAFE = "|echo $$ > pid; cat > out.part && mv out.part out"
"""A command that gives its output a name when it is whole."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "disk.img").write_bytes(DISK)
    return tmp_path


def samples(path: Path) -> dict[str, float]:
    """The metrics, by the name without pybackup_."""
    found = re.findall(r"^pybackup_(\w+)\{.*\} (\S+)$", path.read_text(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# -- the command as a target --


def test_a_command_gets_the_archive(folder: Path) -> None:
    done = pybackup("run", "--json", "disk.img", SAFE, cwd=folder)
    assert (done.code, done.err) == (0, "")
    assert done.json["archive"] == SAFE
    assert decode((folder / "out").read_bytes()).drives == {"disk": DISK}


def test_a_drive_is_restored_to_a_command(folder: Path) -> None:
    assert pybackup("run", "disk.img", "out.vma", cwd=folder).code == 0
    for target in (("|cat > back; pwd >&2",), ("--to", "disk=|cat > back; pwd")):
        told = pybackup("restore", "--json", "out.vma", *target, cwd=folder)
        assert (told.code, told.err) == (0, f"{folder}\n")
        assert told.json["drives"][0]["target"].startswith("|cat")
        assert (folder / "back").read_bytes() == DISK
        (folder / "back").unlink()
    refused = pybackup("restore", "out.vma", "|exec head -c 10 >/dev/null", cwd=folder)
    assert (refused.code, refused.out) == (5, b"")
    assert refused.err.endswith("ended before it had read everything: exit status 0\n")
    assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize(
    "command, sentence",
    [
        ("exit 7", "pybackup: the command 'exit 7' ended before it had read everything: exit status 7\n"),
        ("cat >&-; exit 3", "exit status 3\n"),
        ("cat > x; kill -9 $$", "ended by SIGKILL\n"),
    ],
)
def test_the_commands_failure_is_ours(folder: Path, command: str, sentence: str) -> None:
    done = pybackup("run", "disk.img", f"|exec 2>/dev/null; {command}", cwd=folder)
    assert (done.code, done.out, len(done.err.splitlines())) == (5, b"", 1)
    assert sentence.split("'")[-1] in done.err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_cancelled_stream_is_not_taken_for_whole(folder: Path, number: signal.Signals, code: int) -> None:
    process = start("run", "--speed", "64K", "--compress", "none", "disk.img", SAFE, cwd=folder)
    part = folder / "out.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 0, "the first bytes", [process])
    assert end(process, number) == (code, b"", "pybackup: cancelled\n")
    assert is_gone(int((folder / "pid").read_text()))
    assert sorted(listing(folder)) == ["disk.img", "out.part", "pid"]


def test_a_stream_of_a_killed_run_is_not_taken_for_whole(folder: Path) -> None:
    process = start("run", "--speed", "64K", "--compress", "none", "disk.img", SAFE, cwd=folder)
    part = folder / "out.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 0, "the first bytes", [process])
    assert end(process, signal.SIGKILL).code == 137
    pid = int((folder / "pid").read_text())
    wait_until(lambda: is_gone(pid), "the command's end")
    assert sorted(listing(folder)) == ["disk.img", "out.part", "pid"]


def test_a_signal_does_not_wait_for_a_command_that_reads_nothing(folder: Path) -> None:
    command = "|echo $$ > pid; exec sleep 1000"
    process = start("run", "disk.img", command, "--compress", "none", "--metrics-file", "m.prom", cwd=folder)
    wait_until(lambda: (folder / "pid").exists(), "the command", [process])
    assert end(process, signal.SIGTERM) == (143, b"", "pybackup: cancelled\n")
    assert samples(folder / "m.prom")["exit_code"] == 143


def test_ctrl_c_at_a_terminal_reaches_us_and_not_the_command(folder: Path) -> None:
    process = start("run", "--speed", "64K", "--compress", "none", "disk.img", SAFE, cwd=folder, start_new_session=True)
    part = folder / "out.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 0, "the first bytes", [process])
    assert os.getpgid(int((folder / "pid").read_text())) != process.pid
    os.killpg(process.pid, signal.SIGINT)
    assert end(process) == (130, b"", "pybackup: cancelled\n")
    assert "out" not in listing(folder)


# -- names with fields --


def test_fields_in_the_name(folder: Path) -> None:
    done = pybackup(
        *("run", "--json", "--time", "1700000000", "a=disk.img", "b=disk.img"),
        *("{host}-{name}-{now:%Y%m%dT%H%M%S}.vma", "--on-success", "echo $PYBACKUP_ARCHIVE"),
        cwd=folder,
        env={"TZ": "UTC"},
    )
    name = f"{socket.gethostname()}-a-b-20231114T221320.vma"
    assert (done.code, done.err) == (0, f"{name}\n")
    assert done.json["archive"] == name
    assert (folder / name).exists()
    refused = pybackup("run", "disk.img", "{name.__class__}", cwd=folder)
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "{host}, {name}" in refused.err
    (folder / "x y.img").write_bytes(DISK)
    assert "not safe in a command" in pybackup("run", "x y.img", "|cat > {name}", cwd=folder).err
    assert "--json" in pybackup("run", "--json", "disk.img", "/dev/fd/1", cwd=folder).err


def test_the_name_of_a_servers_disks(folder: Path) -> None:
    with served(folder, "root=" + str(folder / "disk.img")) as server:
        done = pybackup("run", f"serve:{server.control}", "{name}.vma", "--metrics-file", "m.prom", cwd=folder)
        assert (done.code, done.err) == (0, "")
        assert decode((folder / "root.vma").read_bytes()).drives == {"root": DISK}
        assert samples(folder / "m.prom")["read_bytes"] >= 3 << 20
        assert f'job="serve:{server.control}"' in (folder / "m.prom").read_text()
        wrong = pybackup("run", "disk.img", f"serve:{server.control}", cwd=folder)
        assert (wrong.code, "no place for an archive" in wrong.err) == (2, True)


# -- patience --


def test_it_waits_for_another_runs_lock(folder: Path) -> None:
    with (folder / ".out.vma.partial").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start("run", "--lock-wait", "10m", "disk.img", "out.vma", cwd=folder)
        assert process.stderr is not None
        told = process.stderr.readline()
        assert told == b"pybackup: another run is writing out.vma; waiting up to 10 min 00 s\n"
        assert process.poll() is None
    assert end(process) == (0, b"", "")
    assert decode((folder / "out.vma").read_bytes()).drives == {"disk": DISK}


def test_it_waits_for_whoever_writes_the_image(folder: Path) -> None:
    with (folder / "disk.img").open("r+b") as image, ImageLock.for_writing(image.fileno(), "disk.img"):
        busy = pybackup("run", "--lock-wait", "0.2", "-q", "disk.img", "out.vma", cwd=folder)
        assert (busy.code, len(busy.err.splitlines())) == (6, 1)
        process = start("run", "--lock-wait", "600", "disk.img", "out.vma", cwd=folder)
        assert process.stderr is not None
        assert b"QEMU image lock" in process.stderr.readline()
    assert end(process) == (0, b"", "")


def test_it_waits_for_a_server_that_is_busy(folder: Path) -> None:
    with served(folder, str(folder / "disk.img")) as server:
        first = server.start_backup(str(folder / "first.vma"))
        second = server.start_client("--lock-wait", "1h", str(folder / "second.vma"))
        assert second.stderr is not None
        assert "waiting up to 1 h" in second.stderr.readline()
        server.ask("cancel")
        assert (second.wait(timeout=60), second.stderr.read()) == (0, "")
        assert first.wait(timeout=60) == 1
    assert decode((folder / "second.vma").read_bytes()).drives == {"disk": DISK}
    assert not (folder / "first.vma").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_waiting(folder: Path, number: signal.Signals, code: int) -> None:
    with (folder / ".out.vma.partial").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hook = ("--on-failure", "echo $PYBACKUP_EXIT_CODE: $PYBACKUP_ERROR", "--metrics-file", "m.prom")
        process = start("run", "--lock-wait", "1h", *hook, "disk.img", "out.vma", cwd=folder)
        assert process.stderr is not None
        assert b"waiting" in process.stderr.readline()
        assert end(process, number) == (code, b"", f"{code}: cancelled\npybackup: cancelled\n")
    assert samples(folder / "m.prom")["exit_code"] == code


# -- how it ended --


def test_metrics_of_success_and_failure(folder: Path) -> None:
    asked = ("--metrics-file", "m.prom", "disk.img", "out.vma")
    assert pybackup("run", *asked, cwd=folder) == (0, b"", "")
    good = samples(folder / "m.prom")
    assert good["last_success_timestamp_seconds"] == good["last_run_timestamp_seconds"] > 1e9
    assert good["written_bytes"] == (folder / "out.vma").stat().st_size
    assert (good["size_bytes"], good["zero_bytes"], good["stored_bytes"]) == (4 << 20, 1 << 20, 3 << 20)
    assert (good["read_bytes"], good["exit_code"]) == (4 << 20, 0)
    assert pybackup("run", *asked, cwd=folder).code == 5
    bad = samples(folder / "m.prom")
    assert bad["exit_code"] == 5
    assert bad["last_run_timestamp_seconds"] > good["last_run_timestamp_seconds"]
    assert bad["last_success_timestamp_seconds"] == good["last_success_timestamp_seconds"]
    assert 'archive="out.vma",job="disk"' in (folder / "m.prom").read_text()


def test_metrics_that_cannot_be_written_do_not_spoil_a_backup(folder: Path) -> None:
    before = (folder / "disk.img").read_bytes()
    for place in ("nowhere/m.prom", "disk.img"):
        done = pybackup("run", "-f", "--metrics-file", place, "disk.img", "out.vma", cwd=folder)
        assert (done.code, len(done.err.splitlines())) == (0, 1)
        assert done.err.startswith(f"pybackup: cannot write the metrics file {place}: ")
    assert (folder / "disk.img").read_bytes() == before


PRINT = "env | grep ^PYBACKUP_ | grep -v ^PYBACKUP_CI= | sort > told; cat"


def told(folder: Path) -> dict[str, str]:
    lines = (folder / "told").read_text().splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_hooks_are_told_how_it_ended(folder: Path) -> None:
    asked = ("run", "a=disk.img", "b=disk.img", "{name}.vma", "--on-success", PRINT, "--on-failure", PRINT)
    assert pybackup(*asked, cwd=folder, stdin=b"not for hooks") == (0, b"", "")
    good = told(folder)
    assert float(good.pop("PYBACKUP_SECONDS")) > 0
    assert good == {
        "PYBACKUP_ARCHIVE": "a-b.vma",
        "PYBACKUP_ERROR": "",
        "PYBACKUP_EXIT_CODE": "0",
        "PYBACKUP_JOB": "",
        "PYBACKUP_NAMES": "a b",
        "PYBACKUP_READ": str(8 << 20),
        "PYBACKUP_SIZE": str(8 << 20),
        "PYBACKUP_STORED": str(6 << 20),
        "PYBACKUP_WRITTEN": str((folder / "a-b.vma").stat().st_size),
        "PYBACKUP_ZERO": str(2 << 20),
    }
    failed = pybackup(*asked, cwd=folder)
    sentence = "a-b.vma exists already; --force replaces it"
    assert failed == (5, b"", f"pybackup: {sentence}\n")
    assert (told(folder)["PYBACKUP_EXIT_CODE"], told(folder)["PYBACKUP_ERROR"]) == ("5", sentence)
    missing = pybackup("run", "--on-failure", PRINT, "missing.img", "out.vma", cwd=folder)
    assert (missing.code, told(folder)["PYBACKUP_EXIT_CODE"]) == (3, "3")
    senseless = pybackup("run", "--on-failure", PRINT, "disk.img", "x{no}", cwd=folder)
    assert (senseless.code, told(folder)["PYBACKUP_EXIT_CODE"]) == (2, "2")


def test_a_hook_that_fails(folder: Path) -> None:
    asked = ("run", "-f", "--metrics-file", "m.prom", "disk.img", "out.vma")
    done = pybackup(*asked, "--on-success", "echo so; exit 4", "--on-failure", PRINT, cwd=folder)
    sentence = "the --on-success command failed: exit status 4; the archive is complete"
    assert done == (1, b"", f"so\npybackup: {sentence}\n")
    assert decode((folder / "out.vma").read_bytes()).drives == {"disk": DISK}
    assert told(folder)["PYBACKUP_ERROR"] == sentence
    assert samples(folder / "m.prom")["last_success_timestamp_seconds"] == 0
    done = pybackup("run", "disk.img", "out.vma", "--on-failure", "exit 9", cwd=folder)
    assert done.code == 5
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["pybackup"] * 2
    assert "the --on-failure command failed: exit status 9" in done.err


def test_a_signal_ends_a_hook(folder: Path) -> None:
    hook = "echo $$ > pid; sleep 1000; true"
    process = start("run", "disk.img", "out.vma", "--on-success", hook, cwd=folder)
    wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text() != "", "the hook", [process])
    assert end(process, signal.SIGTERM) == (143, b"", "pybackup: cancelled; the archive is complete\n")
    assert is_gone(int((folder / "pid").read_text()))
    assert (folder / "out.vma").exists()


# -- cron --

JOB = """
sources = { scsi0 = "disk.img" }
archive = "{job}-{name}.vma.zst"
level = 1
verify = true
force = true
metrics-file = "m.prom"
on-failure = "echo failed"
nice = 10
ionice = "idle"
"""


def test_a_job_file_in_crons_empty_environment(folder: Path) -> None:
    (folder / "vm1.toml").write_text(JOB)
    for _ in range(2):
        assert pybackup("run", "--job", "vm1.toml", cwd=folder, env={}) == (0, b"", "")
    assert decode((folder / "vm1-scsi0.vma.zst").read_bytes()).drives == {"scsi0": DISK}
    assert 'archive="{job}-{name}.vma.zst",job="vm1"' in (folder / "m.prom").read_text()
    (folder / "other.img").write_bytes(b"other")
    again = pybackup("run", "--job", "vm1.toml", "--json", "other.img", "other.vma", "--level", "2", cwd=folder, env={})
    assert (again.json["archive"], again.json["size"]) == ("other.vma", 5)
    (folder / "disk.img").unlink()
    failed = pybackup("run", "--job", "vm1.toml", cwd=folder, env={})
    assert (failed.code, failed.out) == (3, b"")
    assert failed.err.startswith("failed\npybackup: ")
    assert samples(folder / "m.prom")["exit_code"] == 3


def test_a_job_file_that_is_wrong(folder: Path) -> None:
    for text, sentence in [
        ("levl = 3", "the job file vm1.toml: levl is no option; did you mean level?"),
        ("level = 99", "the job file vm1.toml: level: "),
        ("=", "the job file vm1.toml is not TOML"),
    ]:
        (folder / "vm1.toml").write_text(text)
        done = pybackup("run", "--job", "vm1.toml", cwd=folder)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, b"", 1)
        assert sentence in done.err


def test_the_server_takes_a_job_file_too(folder: Path) -> None:
    (folder / "vm1.toml").write_text(f'sources = "serve:{folder}/control.sock"\narchive = "vm1.vma"\njson = true')
    with served(folder, str(folder / "disk.img")):
        assert pybackup("run", "--job", "vm1.toml", cwd=folder).json["archive"] == "vm1.vma"
