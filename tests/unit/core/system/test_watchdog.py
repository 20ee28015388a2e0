"""A watchdog acts when we die, at whatever moment, and never otherwise."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import watchdog_acts
from live.processes import until

from pybackup.core.system import watchdog_process
from pybackup.core.system.watchdog import Note, Watchdog, watched

LITTLE_LIFE = """
import asyncio, os, signal, sys
sys.path.insert(0, {tests!r})
import watchdog_acts
from pybackup.core.system.watchdog import Watchdog, watched
out, held = {out!r}, os.open({held!r}, os.O_RDONLY)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def hand_over(watchdog):
    watchdog.hand_over(out)
    watchdog.hand_over("first", [held])
    watchdog.hand_over("second", [held, held], within=1000)
async def main():
{body}
asyncio.run(main())
"""
BOTH = {"texts": ["first", "second"], "read": ["content"] * 3}
"""What hand_over() above hands over."""


def program(folder: Path, body: str) -> list[str]:
    """A command line that lives as ``body`` says."""
    (folder / "held").write_text("content")
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    tests = str(Path(watchdog_acts.__file__).parent)
    names = {"tests": tests, "out": str(folder / "out"), "held": str(folder / "held")}
    return [sys.executable, "-c", LITTLE_LIFE.format(body=lines, **names)]


def told(folder: Path) -> dict[str, Any]:
    """What the watchdog wrote down, which it did for itself alone."""
    until((folder / "out").exists)
    found: dict[str, Any] = json.loads((folder / "out").read_text())
    assert found.pop("heavy") == []
    assert found.pop("session")
    assert found.pop("folder") == "/"
    assert found.pop("open") == 2, "standard output and error, which lead nowhere"
    return found


def watchdogs_of(folder: Path, parent: int) -> list[int]:
    """The processes that watch over this one, or did."""
    found = []
    for name in os.listdir("/proc"):
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes() if name.isdecimal() else b""
        except OSError:
            continue
        if watchdog_process.__file__.encode() in command and f"for {parent}: ".encode() in command:
            found.append(int(name))
    return found


@pytest.mark.parametrize(
    "end",
    ["die()", "os._exit(0)", "sys.exit('wrong')", "raise RuntimeError", "return", "os.kill(0, signal.SIGTERM)"],
)
def test_acts_however_we_end(tmp_path: Path, end: str) -> None:
    body = f"watchdog = Watchdog(watchdog_acts.tell, seconds=60)\nawait watchdog.ready()\nhand_over(watchdog)\n{end}"
    done = subprocess.run(program(tmp_path, body), capture_output=True, timeout=60, start_new_session=True)
    assert b"watchdog" not in done.stdout
    assert told(tmp_path) == BOTH


def test_nothing_is_lost_when_we_die_while_it_starts(tmp_path: Path) -> None:
    body = "watchdog = Watchdog(watchdog_acts.tell, seconds=60)\nhand_over(watchdog)\ndie()"
    assert subprocess.run(program(tmp_path, body), timeout=60).returncode == -signal.SIGKILL
    assert told(tmp_path) == BOTH


def test_nothing_is_lost_when_we_die_without_having_listened_to_it(tmp_path: Path) -> None:
    """Then Linux tells of an error before it gives what was sent."""
    body = """
watchdog = Watchdog(watchdog_acts.tell, seconds=60)
import select
select.select([watchdog._socket], [], [])
os.kill(watchdog._process.pid, signal.SIGSTOP)
hand_over(watchdog)
print(watchdog._process.pid, flush=True)
die()
"""
    done = subprocess.run(program(tmp_path, body), stdout=subprocess.PIPE, timeout=60)
    os.kill(int(done.stdout), signal.SIGCONT)
    assert told(tmp_path) == BOTH


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    """What it knows is the beginning of what was handed over, and it is gone soon."""
    body = "async with watched(watchdog_acts.tell, seconds=60) as watchdog:\n    hand_over(watchdog)\n    print('all')"
    process = subprocess.Popen(program(tmp_path, body), stdout=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or watchdogs_of(tmp_path, process.pid))
    time.sleep(random.Random(seed).random() * 0.1)
    process.kill()
    process.wait()
    until(lambda: not watchdogs_of(tmp_path, process.pid))
    if (tmp_path / "out").exists():
        found = told(tmp_path)
        assert found["texts"] == BOTH["texts"][: len(found["texts"])]
        assert len(found["read"]) == len(found["texts"]) * (len(found["texts"]) + 1) // 2


def test_does_nothing_when_dismissed(tmp_path: Path) -> None:
    async def lived() -> int:
        read, write = os.pipe()
        async with watched(watchdog_acts.tell, seconds=60) as watchdog:
            watchdog.hand_over(str(tmp_path / "out"))
            watchdog.hand_over("the end of a pipe", [write])
        os.close(write)
        assert await asyncio.to_thread(os.read, read, 1) == b"", "nobody holds the other end"
        os.close(read)
        await watchdog.dismiss()
        code = watchdog._process.returncode
        assert code is not None
        return code

    assert asyncio.run(lived()) == 0
    assert list(tmp_path.iterdir()) == []


def test_is_dismissed_also_where_the_work_fails(tmp_path: Path) -> None:
    async def lived() -> None:
        async with watched(watchdog_acts.tell, seconds=60) as watchdog:
            watchdog.hand_over(str(tmp_path / "out"))
            raise KeyError("wrong")

    with pytest.raises(KeyError):
        asyncio.run(lived())
    assert list(tmp_path.iterdir()) == []


def test_signals_to_all_do_not_end_it(tmp_path: Path) -> None:
    """Nor before it can ignore them itself."""

    async def lived() -> None:
        watchdog = Watchdog(watchdog_acts.tell, seconds=60)
        for number in watchdog_process.IGNORED:
            watchdog._process.send_signal(number)
        await watchdog.ready()
        for number in watchdog_process.IGNORED:
            watchdog._process.send_signal(number)
        watchdog.hand_over(str(tmp_path / "out"))
        assert watchdog._process.poll() is None
        watchdog._socket.close()  # as if we were dead
        await asyncio.to_thread(watchdog._process.wait)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    asyncio.run(lived())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert told(tmp_path) == {"texts": [], "read": []}


def test_acts_for_who_is_suspended(tmp_path: Path) -> None:
    async def lived() -> None:
        async with watched(watchdog_acts.tell, seconds=60) as watchdog:
            watchdog.hand_over(str(tmp_path / "out"), within=1000)
            watchdog.hand_over("a moment", within=0.01)
            await asyncio.to_thread(until, (tmp_path / "out").exists)
            with pytest.raises(BrokenPipeError):
                watchdog.hand_over("alive")

    asyncio.run(lived())
    assert told(tmp_path) == {"texts": ["a moment"], "read": []}


def test_looks_again_and_again_while_we_live(tmp_path: Path) -> None:
    seen = tmp_path / "out.look"

    async def lived() -> None:
        watchdog = Watchdog(watchdog_acts.tell, seconds=60, look=watchdog_acts.look)
        await watchdog.ready()
        watchdog.hand_over(str(tmp_path / "out"))
        await asyncio.to_thread(until, lambda: seen.exists() and seen.read_text() == "1")
        watchdog.hand_over("a while", within=0.6)
        await asyncio.to_thread(until, lambda: seen.read_text() == "2")
        assert not (tmp_path / "out").exists()
        await asyncio.to_thread(until, (tmp_path / "out").exists)
        await watchdog.dismiss()

    asyncio.run(lived())
    assert told(tmp_path) == {"texts": ["a while"], "read": []}


def test_no_pipeline_waits_for_it_and_it_does_not_stay_for_ever(tmp_path: Path) -> None:
    body = "watchdog = Watchdog(watchdog_acts.stay, seconds=1)\nhand_over(watchdog)\nprint(os.getpid())\ndie()"
    body = body.replace("print(os.getpid())", "print(os.getpid(), flush=True)")
    done = subprocess.run(program(tmp_path, body), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    parent = int(done.stdout)
    assert told(tmp_path) == BOTH
    until(lambda: not watchdogs_of(tmp_path, parent))


def _of_no_module(notes: list[Note]) -> None:
    raise AssertionError("never called")


_of_no_module.__module__ = "there.is.no.such.module"


def failure(act: Callable[[list[Note]], None]) -> str:
    async def lived() -> None:
        async with watched(act, seconds=60):
            raise AssertionError("it cannot be ready")

    with pytest.raises(OSError) as failed:
        asyncio.run(lived())
    return str(failed.value)


def test_a_start_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failure(_of_no_module) == "the watchdog did not start: ModuleNotFoundError: No module named 'there'"
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert failure(watchdog_acts.tell) == "the watchdog did not start: it ended"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "No such file" in failure(watchdog_acts.tell)
    monkeypatch.setattr(sys, "executable", "")
    assert failure(watchdog_acts.tell) == "the path of the Python interpreter is not known"


def test_a_start_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybackup.core.system.watchdog.READY_SECONDS", 0.0)
    assert failure(watchdog_acts.tell) == "the watchdog was not ready within 0 s"


def test_one_that_does_not_go_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pybackup.core.system.watchdog.END_SECONDS", 0.1)

    async def lived() -> int | None:
        async with watched(watchdog_acts.tell, seconds=60) as watchdog:
            watchdog._process.send_signal(signal.SIGSTOP)
            watchdog.hand_over(str(tmp_path / "out"))
        return watchdog._process.returncode

    assert asyncio.run(lived()) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
