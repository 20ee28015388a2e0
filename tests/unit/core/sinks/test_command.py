"""A command as a target: it gets every byte or it fails, and no truncated stream is ever taken for whole."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import wait_until

from pybackup.core.errors import TargetError
from pybackup.core.sinks.command import CommandSink
from pybackup.core.system import child_group

BYTES = random.Random(5).randbytes(3 << 20)


async def feed(sink: CommandSink, pieces: Sequence[bytes] = (BYTES,)) -> None:
    """What a job does."""
    try:
        await sink.begin()
        for piece in pieces:
            await sink.write([piece])
        await sink.commit()
    except BaseException:
        await sink.abort()
        raise


def failure(command: str, pieces: Sequence[bytes] = (BYTES,)) -> str:
    with pytest.raises(TargetError) as failed:
        asyncio.run(feed(CommandSink(f"{command}"), pieces))
    return str(failed.value)


def is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_every_byte_arrives(tmp_path: Path) -> None:
    asyncio.run(feed(CommandSink(f" cat > {tmp_path}/out"), [b"", BYTES, b"x", BYTES]))
    assert (tmp_path / "out").read_bytes() == BYTES + b"x" + BYTES
    asyncio.run(feed(CommandSink(f"cat > {tmp_path}/empty"), []))
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_pipeline_of_the_shell_and_a_command_that_closes_nothing(tmp_path: Path) -> None:
    asyncio.run(feed(CommandSink(f"tr a b | cat > {tmp_path}/out; cat"), [b"banana"]))
    assert (tmp_path / "out").read_bytes() == b"bbnbnb"


def test_what_it_prints_goes_to_our_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    asyncio.run(feed(CommandSink("wc -c; echo oops >&2"), [b"four"]))
    assert capfd.readouterr() == ("", "4\noops\n")


@pytest.mark.parametrize(
    "command, sentence",
    [
        ("cat >/dev/null; exit 3", "the command 'cat >/dev/null; exit 3' failed: exit status 3"),
        ("cat >/dev/null; kill -9 $$", "failed: ended by SIGKILL"),
        ("cat >/dev/null; sh -c 'kill -s TERM $$'", "SIGTERM"),
        ("exit 7", "ended before it had read everything: exit status 7"),
        ("true", "ended before it had read everything: exit status 0"),
        ("head -c 1000 >/dev/null", "ended before it had read everything: exit status 0"),
        ("no-such-program-at-all", "exit status 127"),
        ("if", "exit status 2"),
    ],
)
@pytest.mark.parametrize("pieces", [(BYTES, BYTES), (b"x" * 9000,)], ids=["much", "little"])
def test_a_command_that_fails(command: str, sentence: str, pieces: Sequence[bytes]) -> None:
    assert sentence in failure(command, pieces)


def test_a_command_that_closes_its_input_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybackup.core.sinks.command.GRACE", 0.05)
    assert "closed its input before it had read everything" in failure("exec <&-; exec sleep 1000")


def test_bytes_left_in_the_pipe_are_a_failure() -> None:
    assert "ended before it had read everything" in failure("dd bs=1 count=10 of=/dev/null 2>/dev/null", [b"x" * 100])


async def _abandon(command: str, started: Path) -> int:
    sink = CommandSink(f"{command}")
    await sink.begin()
    await sink.write([b"half of it"])
    wait_until(lambda: started.exists() and started.read_text().endswith("\n"), "the command")
    await sink.abort()
    await sink.abort()
    return int(started.read_text())


@pytest.mark.parametrize("tough", ["", "trap '' TERM; "])
def test_an_abandoned_command_never_sees_the_end(tmp_path: Path, tough: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_group, "GRACE", 0.05)
    started = tmp_path / "pid"
    command = f"{tough}cd {tmp_path}; sh -c 'echo $$ > pid; cat > part; echo > ended' && mv part whole; echo > after"
    pid = asyncio.run(_abandon(command, started))
    assert is_gone(pid)
    # `part` is there where cat was quicker than we.
    assert set(os.listdir(tmp_path)) - {"part"} == {"pid"}


def test_a_member_that_outlives_its_leader_dies_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_group, "GRACE", 0.5)
    started = tmp_path / "pid"
    command = f"(exec 3<&0; sh -c 'cat <&3 > {tmp_path}/part; echo > {tmp_path}/whole' & echo $! > {started}); exit 0"
    with pytest.raises(TargetError, match="exit status 0"):
        asyncio.run(feed(CommandSink(f"{command}"), [BYTES] * 4))
    wait_until(lambda: is_gone(int(started.read_text())), "the end of it")
    assert not (tmp_path / "whole").exists()


def test_cancelling_does_not_wait_for_a_command_that_reads_nothing() -> None:
    async def cancelled() -> None:
        sink = CommandSink("exec sleep 1000")
        task = asyncio.create_task(feed(sink, [BYTES] * 10))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sink._group is not None
        assert sink._group.status == -signal.SIGTERM

    asyncio.run(cancelled())


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    asyncio.run(feed(CommandSink(f"cat > {tmp_path}/out")))
    failure("exit 1")
    assert os.listdir("/proc/self/fd") == before


def test_how_it_is_called() -> None:
    assert CommandSink(" cat ").name == "the command 'cat'"


def test_an_abort_before_the_beginning() -> None:
    asyncio.run(CommandSink("touch /nonexistent/x").abort())
