"""The program as a whole: every command on files and pipes, signals, locks, streams, progress."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from archives import CREATED, UUID, decode
from command_line import end, listing, pybackup, start, wait_until

NOISE = random.Random(3)
DISKS = {
    "scsi0": NOISE.randbytes(300_001) + bytes(5_000_000) + b"the end",
    "scsi1": bytes(70_000) + b"x" * 1000 + bytes(70_000),
}
CONFIG = b"cores: 2\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two disks, a configuration and their archives."""
    folder = tmp_path_factory.mktemp("made")
    for name, disk in DISKS.items():
        (folder / f"{name}.img").write_bytes(disk)
    (folder / "qemu-server.conf").write_bytes(CONFIG)
    inputs = ("scsi0.img", "scsi1.img", "-c", "qemu-server.conf")
    fixed = ("--uuid", UUID.hex(), "--time", str(CREATED))
    assert pybackup("run", *inputs, "all.vma", *fixed, cwd=folder).code == 0
    assert pybackup("run", *inputs, "plain.vma", "--compress", "none", *fixed, cwd=folder) == (0, b"", "")
    return folder


ARCHIVES = ["all.vma", "plain.vma"]


def test_compressed_and_plain_are_the_same_bytes(made: Path) -> None:
    whole = subprocess.run(["zstd", "-dc"], input=(made / "all.vma").read_bytes(), capture_output=True, check=True)
    assert whole.stdout == (made / "plain.vma").read_bytes()
    assert decode(whole.stdout).drives == DISKS


@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize("piped", [False, True])
def test_every_command_on_a_file_and_on_a_pipe(made: Path, tmp_path: Path, archive: str, piped: bool) -> None:
    name = "-" if piped else str(made / archive)
    given: dict[str, Any] = {"stdin": (made / archive).read_bytes() if piped else None, "cwd": made}

    assert pybackup("verify", name, **given).code == 0
    verified = pybackup("verify", "--json", name, **given)
    assert verified.json == {"archive": name, "sound": True, "protected": True, "damage": []}

    facts = pybackup("info", "--json", "--map", name, **given).json
    assert [(drive["name"], drive["size"]) for drive in facts["drives"]] == [(n, len(d)) for n, d in DISKS.items()]
    assert [drive["stored"] for drive in facts["drives"]] == [75 * 4096, 4096]
    assert facts["configs"] == [{"name": "qemu-server.conf", "size": len(CONFIG)}]
    assert facts["index"] == (archive == "all.vma")
    assert (facts["size"] is None) == piped
    told = pybackup("info", "--map", name, **given)
    assert (told.code, told.err) == (0, "")
    assert b"scsi1" in told.out

    assert pybackup("config", name, **given).out == CONFIG
    assert pybackup("config", "--json", name, **given).json == {"qemu-server.conf": CONFIG.decode()}

    for drive, disk in DISKS.items():
        assert pybackup("restore", name, "-", "--drive", drive, **given).out == disk
    (tmp_path / "all").mkdir()
    report = pybackup("restore", "--json", "--with-config", name, tmp_path / "all", **given).json
    assert report["damage"] == []
    expected = {f"{drive}.raw": disk for drive, disk in DISKS.items()} | {"qemu-server.conf": CONFIG}
    assert listing(tmp_path / "all") == expected
    assert (tmp_path / "all" / "scsi0.raw").stat().st_blocks * 512 < 1_000_000

    equal = pybackup("compare", "--json", name, "scsi0.img", "scsi1.img", **given)
    nothing: dict[str, object] = {"equal": True, "different_bytes": 0, "differences": [], "larger": {}, "smaller": {}}
    assert (equal.code, equal.json) == (0, nothing)


def test_restore_to_named_places(made: Path, tmp_path: Path) -> None:
    places = ("--to", f"scsi0={tmp_path / 'zero'}", "--to", f"scsi1={tmp_path / 'one'}")
    assert pybackup("restore", made / "all.vma", *places).code == 0
    assert listing(tmp_path) == {"zero": DISKS["scsi0"], "one": DISKS["scsi1"]}
    assert pybackup("restore", made / "all.vma", *places).code == 5
    assert pybackup("restore", "--force", made / "all.vma", *places).code == 0


def test_compare_tells_what_differs(made: Path, tmp_path: Path) -> None:
    changed = bytearray(DISKS["scsi0"])
    changed[1000] ^= 1
    changed[1_000_000:1_000_600] = b"y" * 600
    (tmp_path / "changed.img").write_bytes(bytes(changed) + b"longer")
    told = pybackup("compare", "--json", made / "all.vma", f"scsi0={tmp_path / 'changed.img'}")
    assert told.code == 1
    assert told.json["differences"] == [
        {"drive": "scsi0", "offset": 512, "length": 512},
        {"drive": "scsi0", "offset": 999_936, "length": 1024},
    ]
    assert told.json["larger"] == {"scsi0": 6}
    assert b"differ" in pybackup("compare", made / "all.vma", f"scsi0={tmp_path / 'changed.img'}").out


def test_in_crons_empty_environment(made: Path, tmp_path: Path) -> None:
    for arguments in (("run", "scsi0.img", tmp_path / "out.vma"), ("restore", tmp_path / "out.vma", tmp_path / "back")):
        done = pybackup(*arguments, cwd=made, env={})
        assert done == (0, b"", "")
    assert (tmp_path / "back").read_bytes() == DISKS["scsi0"]
    told = pybackup(
        "info", "--map", tmp_path / "out.vma", env={"LC_ALL": "en_US.ISO-8859-1", "PYTHONIOENCODING": "ascii"}
    )
    assert told.code == 0


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    source = os.fsencode(tmp_path) + b"/\xff\xfe.img"
    with open(source, "wb") as file:
        file.write(b"disk")
    assert pybackup("run", os.fsdecode(source), tmp_path / "out.vma").code == 0
    for environment in ({}, {"LC_ALL": "C.UTF-8"}):
        told = pybackup("info", tmp_path / "out.vma", env=environment)
        assert (told.code, told.err) == (0, "")
        assert pybackup("verify", tmp_path / "out.vma", env=environment).code == 0


def test_from_the_standard_input_to_a_fifo(made: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    disk = DISKS["scsi0"]
    writer = start("run", "disk=-", "--size", str(len(disk)), fifo)
    reader = start("restore", fifo, tmp_path / "back")
    assert writer.stdin is not None
    writer.stdin.write(disk)
    assert end(writer) == (0, b"", "")
    assert end(reader) == (0, b"", "")
    assert (tmp_path / "back").read_bytes() == disk
    assert fifo.is_fifo()


@pytest.mark.parametrize("size, sentence", [(100, "has more"), (10_000_000, "ended after")])
def test_a_standard_input_of_another_size(tmp_path: Path, size: int, sentence: str) -> None:
    done = pybackup("run", "-", "--size", str(size), tmp_path / "out.vma", stdin=DISKS["scsi0"])
    assert done.code == 3
    assert sentence in done.err
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("sent", [0, 5000, 1 << 20])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_standard_input_that_stalls(
    tmp_path: Path, sent: int, number: signal.Signals
) -> None:
    process = start("run", "-", "--size", "1M", tmp_path / "out.vma", "--trace", "job.state")
    assert process.stdin is not None and process.stderr is not None
    assert b"running" in process.stderr.readline()
    process.stdin.write(bytes(sent))
    process.stdin.flush()
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert end(process).err.endswith("pybackup: cancelled\n")
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "-"])
def test_the_standard_output_by_all_its_names(made: Path, tmp_path: Path, target: str) -> None:
    assert decode(pybackup("run", "scsi1.img", target, cwd=made).out).drives == {"scsi1": DISKS["scsi1"]}
    place = tmp_path / "out"
    for arguments in (
        ("run", "--force", "scsi1.img", target),
        ("restore", "--force", "all.vma", target, "--drive", "scsi1"),
    ):
        with place.open("wb") as file:
            assert pybackup(*arguments, cwd=made, stdout=file).code == 0
        content = place.read_bytes()
        assert content == DISKS["scsi1"] or decode(content).drives == {"scsi1": DISKS["scsi1"]}
    assert Path("/dev/stdout").is_symlink()


def test_force_replaces_and_keeps_the_old_one_until_the_new_one_is_whole(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.vma"
    old = (made / "plain.vma").read_bytes()
    target.write_bytes(old)
    assert pybackup("run", "--force", "missing.img", target).code == 3
    assert listing(tmp_path) == {"out.vma": old}
    assert pybackup("run", "--force", "--verify", made / "scsi1.img", target).code == 0
    assert decode(target.read_bytes()).drives == {"scsi1": DISKS["scsi1"]}
    assert len(listing(tmp_path)) == 1


# -- progress -------------------------------------------------------------------------------------------------------


def test_json_on_both_sides(made: Path, tmp_path: Path) -> None:
    done = pybackup(
        "run", "--json", "--verify", "--progress", "json", "scsi0.img", "scsi1.img", tmp_path / "o", cwd=made
    )
    assert done.json["size"] == sum(map(len, DISKS.values()))
    assert done.json["written"] == (tmp_path / "o").stat().st_size
    assert done.json["verified"] is True
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert lines[0]["event"] == "backup"
    assert (lines[-1]["state"], lines[-1]["done"]) == ("concluded", done.json["size"])
    for command in (("verify",), ("restore", str(tmp_path / "d") + "/"), ("compare", "scsi0.img")):
        (tmp_path / "d").mkdir(exist_ok=True)
        told = pybackup(command[0], tmp_path / "o", *command[1:], "--progress", "json", cwd=made)
        assert {json.loads(line)["event"] for line in told.err.splitlines()} == {command[0]}


def test_plain_progress_is_lines(made: Path, tmp_path: Path) -> None:
    done = pybackup("run", "--progress", "plain", "scsi0.img", tmp_path / "out.vma", cwd=made)
    assert done.code == 0
    assert "100 %" in done.err
    assert "\r" not in done.err


def test_trace_points(made: Path, tmp_path: Path) -> None:
    done = pybackup("run", "--trace", "copy.*,archive.finish", "scsi0.img", tmp_path / "out.vma", cwd=made)
    events = [json.loads(line) for line in done.err.splitlines()]
    assert {event["trace"] for event in events} == {"copy.read", "archive.finish"}
    assert events[-1]["size"] == (tmp_path / "out.vma").stat().st_size
    assert b"job.state" in pybackup("run", "--trace", "help", "a", "b").out
    for command in (("verify",), ("restore", tmp_path / "back"), ("compare", "scsi0.img")):
        told = pybackup(command[0], tmp_path / "out.vma", *command[1:], "--trace", "job.*", cwd=made)
        assert '{"trace": "job.state", "state": "concluded"}' in told.err


def test_the_version_costs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pybackup.cli", "--version"], capture_output=True, check=True
    )
    assert done.stdout.startswith(b"pybackup ")
    loaded = {line.rsplit(b"|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {b"rich", b"asyncio", b"click", b"zstandard", b"tqdm"}


# -- signals and locks ----------------------------------------------------------------------------------------------

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of noise and its archive, for runs that are slowed until they are ended."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.img").write_bytes(NOISE.randbytes(12 << 20))
    assert pybackup("run", "--level", "1", folder / "slow.img", folder / "slow.vma").code == 0
    return folder


@pytest.mark.parametrize("number, code", SIGNALS)
def test_a_signal_ends_a_run_and_leaves_nothing(slow: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start("run", "--speed", "6M", "--compress", "none", slow / "slow.img", tmp_path / "out.vma")
    partial = tmp_path / ".out.vma.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 0, "the partial file", [process])
    assert end(process, number) == (code, b"", "pybackup: cancelled\n")
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("number, code", SIGNALS)
def test_a_signal_ends_a_restore_and_leaves_what_says_so(
    slow: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start("restore", "--speed", "1M", slow / "slow.vma", tmp_path / "back")
    partial = tmp_path / ".back.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_blocks > 0, "the partial file", [process])
    ended = end(process, number)
    assert (ended.code, ended.out) == (code, b"")
    assert re.fullmatch(
        rf"pybackup: cancelled; {tmp_path}/back\.partial is what was restored until then"
        r" \([0-9,]+ bytes were written\), and not the whole disk\n",
        ended.err,
    )
    assert list(listing(tmp_path)) == ["back.partial"]
    assert pybackup("restore", slow / "slow.vma", tmp_path / "back") == (0, b"", "")
    assert listing(tmp_path) == {"back": (slow / "slow.img").read_bytes()}


@pytest.mark.parametrize("command", ["verify", "restore", "compare"])
def test_a_signal_ends_the_wait_for_a_pipe_that_says_no_more(slow: Path, tmp_path: Path, command: str) -> None:
    more = {"restore": [tmp_path / "back"], "compare": [slow / "slow.img"], "verify": []}[command]
    process = start(command, "-", *more, "--trace", "job.state")
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write((slow / "slow.vma").read_bytes()[: 11 << 20])
    process.stdin.flush()
    assert b"running" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    process.stdin.close()
    process.stderr.close()
    assert process.stdout is not None
    process.stdout.close()


def is_locked(path: Path) -> bool:
    return path.exists() and f":{path.stat().st_ino} " in Path("/proc/locks").read_text()


def test_the_second_of_two_runs_is_busy(slow: Path, tmp_path: Path) -> None:
    first = start("run", "--speed", "1M", "--compress", "none", slow / "slow.img", tmp_path / "out.vma")
    partial = tmp_path / ".out.vma.partial"
    wait_until(lambda: is_locked(partial), "the partial file", [first])
    second = pybackup("run", slow / "slow.img", tmp_path / "out.vma")
    assert (second.code, second.out) == (6, b"")
    assert "another run" in second.err
    assert first.poll() is None
    assert end(first, signal.SIGTERM).code == 143


def test_a_lock_of_a_killed_run_is_no_lock(slow: Path, tmp_path: Path) -> None:
    first = start("run", "--speed", "1M", "--compress", "none", slow / "slow.img", tmp_path / "out.vma")
    partial = tmp_path / ".out.vma.partial"
    wait_until(lambda: is_locked(partial), "the partial file", [first])
    assert end(first, signal.SIGKILL).code == 137
    assert list(listing(tmp_path)) == [".out.vma.partial"]
    assert pybackup("run", "--level", "1", slow / "slow.img", tmp_path / "out.vma").code == 0
    assert list(listing(tmp_path)) == ["out.vma"]


def test_somebody_elses_lock_on_the_partial_file_is_respected(made: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".out.vma.partial"
    with partial.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert pybackup("run", made / "scsi1.img", tmp_path / "out.vma").code == 6
    assert pybackup("run", made / "scsi1.img", tmp_path / "out.vma").code == 0


def test_a_signal_ends_the_wait_for_a_fifo_that_nobody_reads(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "disk.img").write_bytes(b"x")
    process = start("run", tmp_path / "disk.img", tmp_path / "fifo", "--trace", "job.state")
    assert process.stderr is not None
    assert b"running" in process.stderr.readline()
    assert end(process, signal.SIGINT).code == 130


def test_a_disk_in_small_pieces_comes_back_everywhere_and_each_change_is_found(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    pieces = {n * 16384: n.to_bytes(4, "big") * 1024 for n in range(1, 1500)}
    with disk.open("wb") as file:
        file.truncate(1500 * 16384 + 100)
        for offset, content in pieces.items():
            file.seek(offset)
            file.write(content)
    assert pybackup("run", disk, tmp_path / "disk.vma").code == 0
    assert pybackup("restore", tmp_path / "disk.vma", tmp_path / "back.img").code == 0
    assert (tmp_path / "back.img").read_bytes() == disk.read_bytes()
    assert (tmp_path / "back.img").stat().st_blocks * 512 <= 1.1 * disk.stat().st_blocks * 512
    streamed = pybackup("restore", tmp_path / "disk.vma", "-")
    assert (streamed.code, streamed.out == disk.read_bytes()) == (0, True)
    assert pybackup("compare", tmp_path / "disk.vma", tmp_path / "back.img").code == 0
    with (tmp_path / "back.img").open("r+b") as file:
        for offset in (5, 16384 + 4095, 700 * 16384 + 9000, 1500 * 16384 + 99):
            file.seek(offset)
            file.write(b"!")
    outcome = pybackup("compare", "--json", tmp_path / "disk.vma", tmp_path / "back.img")
    ranges = [(one["offset"], one["length"]) for one in outcome.json["differences"]]
    assert ranges == [(0, 512), (19968, 512), (700 * 16384 + 8704, 512), (1500 * 16384, 100)]
