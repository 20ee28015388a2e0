"""A guest's filesystems are frozen at the instant, or it is known why not; and thawed in any case."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_agent import FakeAgent, fake_agent, is_silent, late, refuses, says
from live.processes import until

from pybackup.core.guest import agent as guest_agent
from pybackup.core.guest import filesystem_freeze, held_filesystems, thaw
from pybackup.core.guest.filesystem_freeze import AgentOptions, FilesystemFreeze

STATUS, FREEZE, THAW = "guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked again is asked soon."""
    monkeypatch.setattr(thaw, "ATTEMPT_SECONDS", 0.05)
    monkeypatch.setattr(guest_agent, "RETRY_SECONDS", 0.01)


@pytest.fixture(name="agent")
def _agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with fake_agent(tmp_path / "agent.sock") as agent:
        yield agent


class Course:
    """What became of one instant."""

    def __init__(self, path: str, seconds: float = 30) -> None:
        self.told: list[str] = []
        self.was_taken = False
        self.freeze = FilesystemFreeze(AgentOptions(path, seconds), self.told.append)

    async def go(self, at_the_instant: Callable[[], None] = lambda: None) -> None:
        assert self.freeze.facts() == {}, "nothing is known before"
        async with self.freeze.held():
            at_the_instant()
            self.was_taken = True

    def run(self, at_the_instant: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """The facts about it."""

        async def ran() -> None:
            await self.go(at_the_instant)
            await self.freeze.close()

        asyncio.run(ran())
        assert self.was_taken
        assert not asyncio.run(_children()), "the watchdog has gone"
        return self.freeze.facts()

    def reason(self, at_the_instant: Callable[[], None] = lambda: None) -> str:
        """Why it is only crash-consistent."""
        facts = self.run(at_the_instant)
        assert facts.keys() == {"consistency", "consistency_reason"}
        assert facts["consistency"] == "crash"
        return str(facts["consistency_reason"])


async def _children() -> list[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: ASYNC230
        return file.read().split()


def test_frozen_at_the_instant_and_no_longer(agent: FakeAgent) -> None:
    states = []
    course = Course(agent.path)
    facts = course.run(lambda: states.append(agent.frozen))
    assert states == [True]
    assert not agent.frozen
    assert agent.done == [STATUS, FREEZE, THAW]
    assert (facts["consistency"], facts["filesystems"], course.told) == ("filesystem", 2, [])
    assert 0 <= facts["frozen_seconds"] < 5
    # The connection has ended, so the next client is served.
    assert Course(agent.path).run()["consistency"] == "filesystem"


@pytest.mark.parametrize(
    "stale",
    [
        b"\xff\n\xff\xff{",
        b'{"return": "frozen"}\n\xff{"return": 5}\n{"return": "frozen"}\n',
        b"login: root\r\nPassword: \xff",
        b"x" * 300_000,
        b"\xff" + b"[" * 300_000,
    ],
)
def test_what_others_left_in_the_channel_is_nobodys_answer(agent: FakeAgent, stale: bytes) -> None:
    agent.prefix = stale
    assert Course(agent.path).run()["consistency"] == "filesystem"


# -- no freeze --


def test_nobody_is_there(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    assert Course(str(path)).reason() == f"cannot connect to a guest agent at {path}: No such file or directory"
    closed = FakeAgent(path, listening=False)
    assert Course(str(path)).reason() == f"cannot connect to a guest agent at {path}: Connection refused"
    closed.close()
    long = f"/{'x' * 200}"
    assert Course(long).reason() == f"cannot connect to a guest agent at {long}: AF_UNIX path too long"


def test_nobody_answers(agent: FakeAgent) -> None:
    """Then nothing is sent that an agent would do one day when it starts."""
    agent.instead["guest-sync-delimited"] = [is_silent] * 2
    agent.instead[STATUS] = [is_silent]
    assert Course(agent.path, 0.2).reason() == f"the guest agent at {agent.path} does not answer {STATUS} within 0.2 s"
    assert set(agent.done) <= {STATUS}


def test_too_many_others_want_to_connect(agent: FakeAgent) -> None:
    """A channel serves one client; others wait in a queue, which is of a certain length."""
    others: list[socket.socket] = []
    try:
        while True:
            others.append(socket.socket(socket.AF_UNIX))
            others[-1].setblocking(False)
            others[-1].connect(agent.path)
            until(lambda: agent.clients == 1)  # the first is served, the others wait
    except BlockingIOError:
        said = Course(agent.path, 0.2).reason()
        assert said == f"cannot connect to a guest agent at {agent.path}: too many others wait"
    finally:
        for one in others:
            one.close()


@pytest.mark.parametrize(
    ("command", "answer", "reason"),
    [
        (STATUS, refuses("Command x has been disabled"), f"refuses {STATUS}: Command x has been disabled"),
        (STATUS, says(b"\n"), f"refuses {STATUS}: it answers nonsense"),
        (STATUS, says(b'{"return": ["thawed"]}\n'), "by somebody else"),
        (STATUS, says(b'{"return": "frozen"}\n'), "were frozen already, by somebody else"),
        (STATUS, says(b'{"error": {"desc": "\\u001b[31m\\n' + b"x" * 999 + b'"}}\n'), "?[31m?" + "x" * 194),
        (STATUS, says(b"{" * 100_000 + b"\n"), "it answers nonsense"),
        (FREEZE, refuses("Command guest-fsfreeze-freeze has been disabled"), "has been disabled"),
        (FREEZE, refuses("this feature or command is not currently supported"), "not currently supported"),
    ],
)
def test_an_agent_that_does_not_freeze(
    agent: FakeAgent, command: str, answer: Callable[[FakeAgent], bytes], reason: str
) -> None:
    agent.instead[command] = [answer]
    assert reason in Course(agent.path).reason()
    assert THAW not in agent.done, "nothing of ours is frozen"


def test_frozen_by_somebody_else_a_moment_ago_stays_so(agent: FakeAgent) -> None:
    def frozen(agent: FakeAgent) -> bytes:
        agent.frozen = True
        return agent.carry_out(FREEZE)

    agent.instead[FREEZE] = [frozen]
    assert "has been disabled: the agent is in frozen state" in Course(agent.path).reason()
    assert agent.frozen
    assert agent.done == [STATUS, FREEZE, STATUS]


def test_without_a_watchdog_nothing_is_frozen(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "nothing would have thawed them if pybackup had been killed: [Errno 2]" in Course(agent.path).reason()
    assert agent.done == [STATUS]


def test_a_watchdog_that_was_killed_before_the_freeze(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = filesystem_freeze.Watchdog.ready

    async def then_killed(self: Any) -> None:
        await ready(self)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    monkeypatch.setattr(filesystem_freeze.Watchdog, "ready", then_killed)
    assert "nothing would have thawed them if pybackup had been killed: [Errno 32]" in Course(agent.path).reason()
    assert FREEZE not in agent.done


# -- a freeze whose outcome is not as it should be --


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says(b'{"return": "2"}\n'), "froze no filesystem"),
        (says(b'{"return": true}\n'), "froze no filesystem"),
        (says(b'{"return": -1}\n'), "froze no filesystem"),
        (says(b'{"return": 3}\n'), "of 3 filesystems only 2 were still frozen after the instant"),
        (says(b"what?\n"), "refuses guest-fsfreeze-freeze: it answers nonsense"),
        (refuses("failed to freeze /: Input/output error"), "failed to freeze /: Input/output error"),
    ],
)
def test_a_freeze_that_may_have_happened_is_undone(
    agent: FakeAgent, answer: Callable[[FakeAgent], bytes], reason: str
) -> None:
    def frozen(agent: FakeAgent) -> bytes:
        agent.carry_out(FREEZE)
        return answer(agent)

    agent.instead[FREEZE] = [frozen]
    course = Course(agent.path)
    assert reason in course.reason()
    assert not agent.frozen
    assert course.told == []


def test_a_guest_without_filesystems(tmp_path: Path) -> None:
    with fake_agent(tmp_path / "agent.sock", 0) as agent:
        assert Course(agent.path).reason() == f"the guest agent at {agent.path} froze no filesystem"
        assert agent.done == [STATUS, FREEZE, THAW]


def test_a_freeze_that_is_late_is_thawed_when_it_is_done(agent: FakeAgent) -> None:
    in_time = threading.Event()
    agent.instead[FREEZE] = [late(FREEZE, in_time)]
    course = Course(agent.path, 0.2)

    async def ran() -> None:
        await course.go(lambda: in_time.clear())
        assert not agent.frozen
        in_time.set()
        await course.freeze.close()

    asyncio.run(ran())
    assert course.freeze.facts() == {
        "consistency": "crash",
        "consistency_reason": f"the guest agent at {agent.path} does not answer {FREEZE} within 0.2 s",
    }
    assert not agent.frozen
    assert agent.done[:3] == [STATUS, FREEZE, THAW]


def test_thawed_by_somebody_else_in_the_midst(agent: FakeAgent) -> None:
    """Windows does it by itself."""

    def thawed() -> None:
        agent.frozen = False

    said = "of 2 filesystems only 0 were still frozen after the instant"
    assert Course(agent.path).reason(thawed) == said
    agent.instead[THAW] = [refuses("couldn't hold writes: fsfreeze is limited up to 10 seconds")]
    assert Course(agent.path).reason(thawed) == said


# -- a thaw that does not work at once --


def test_a_thaw_is_asked_for_until_it_worked(agent: FakeAgent) -> None:
    agent.instead[THAW] = [refuses("not now"), says(b"?\n"), is_silent, refuses("not now")]
    course = Course(agent.path)
    assert course.run()["consistency"] == "filesystem"
    assert agent.done.count(THAW) >= 5
    assert not agent.frozen
    assert course.told == []


def test_the_late_answer_to_the_first_thaw_counts(agent: FakeAgent) -> None:
    """Those after it have thawed nothing any more."""
    in_time = threading.Event()

    def with_another_in_the_channel(agent: FakeAgent) -> bytes:
        answer = agent.carry_out(THAW)
        assert in_time.wait(60)
        return answer

    agent.instead[THAW] = [with_another_in_the_channel]
    course = Course(agent.path)

    async def ran() -> None:
        asyncio.get_running_loop().call_later(0.3, in_time.set)
        await course.go()
        await course.freeze.close()

    asyncio.run(ran())
    assert course.freeze.facts()["consistency"] == "filesystem"


@pytest.mark.parametrize("command", [FREEZE, THAW])
def test_a_connection_that_ends_is_made_again(agent: FakeAgent, command: str) -> None:
    def hung_up(agent: FakeAgent) -> None:
        if command == FREEZE:
            agent.carry_out(FREEZE)
        agent.close_client()

    agent.instead[command] = [hung_up]
    course = Course(agent.path)
    facts = course.run()
    assert not agent.frozen
    assert agent.clients == 2
    assert facts["consistency"] == ("crash" if command == FREEZE else "filesystem")


def test_a_guest_that_may_hang_is_told_of_and_told_of_again_when_it_does_not(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_filesystems, "TELL_SECONDS", 0.2)
    in_time = threading.Event()
    agent.instead[THAW] = [late(THAW, in_time)]
    course = Course(agent.path)

    async def ran() -> None:
        await course.go()
        await asyncio.to_thread(until, lambda: course.told)
        in_time.set()
        await course.freeze.close()

    asyncio.run(ran())
    assert len(course.told) == 2
    assert course.told[0].startswith(f"THE GUEST MAY HANG: the guest agent at {agent.path} does not say")
    assert f"socat -t5 - UNIX-CONNECT:{agent.path}" in course.told[0]
    assert course.told[1] == "the guest's filesystems are thawed now"
    assert course.freeze.facts()["consistency"] == "filesystem"


def test_what_is_not_thawed_at_the_end_is_left_to_the_watchdog(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_filesystems, "TELL_SECONDS", 0.1)
    monkeypatch.setattr(held_filesystems, "PATIENCE_SECONDS", 0.2)
    in_time = threading.Event()
    agent.instead[THAW] = [late(THAW, in_time)]
    course = Course(agent.path)

    async def ran() -> None:
        await course.go()
        await course.freeze.close()

    asyncio.run(ran())
    assert "has not said" not in str(course.freeze.facts())
    assert course.freeze.facts()["consistency_reason"] == (
        f"the guest agent at {agent.path} did not say whether they were frozen until after the instant"
    )
    assert course.told[1] == f"a process of pybackup goes on asking the guest agent at {agent.path} for ten minutes"
    assert agent.frozen
    in_time.set()
    until(lambda: not agent.frozen)
    until(lambda: not asyncio.run(_children()))


# -- the instant itself ends otherwise --


def test_an_instant_that_fails_is_thawed(agent: FakeAgent) -> None:
    def fails() -> None:
        assert agent.frozen
        raise KeyError("wrong")

    course = Course(agent.path)
    with pytest.raises(KeyError):
        asyncio.run(course.go(fails))
    assert not agent.frozen
    assert agent.done == [STATUS, FREEZE, THAW]


@pytest.mark.parametrize("where", [STATUS, FREEZE, THAW])
def test_cancelled_while_an_answer_is_awaited(agent: FakeAgent, where: str) -> None:
    arrived, in_time = threading.Event(), threading.Event()

    def told_and_late(agent: FakeAgent) -> bytes:
        arrived.set()
        return late(where, in_time)(agent)

    agent.instead[where] = [told_and_late]
    course = Course(agent.path)

    async def ran() -> None:
        task = asyncio.create_task(course.go())
        await asyncio.to_thread(arrived.wait)
        task.cancel()
        asyncio.get_running_loop().call_later(0.1, in_time.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        in_time.set()
        await course.freeze.close()

    asyncio.run(ran())
    assert not agent.frozen
    assert course.was_taken == (where == THAW)
    assert (THAW in agent.done) == (where != STATUS)
    until(lambda: not asyncio.run(_children()))


# -- we are killed, or suspended --

LIFE = """
import asyncio, os, signal, sys
from pybackup.core.guest import filesystem_freeze
from pybackup.core.guest.filesystem_freeze import AgentOptions, FilesystemFreeze
filesystem_freeze.HOLD_SECONDS = {hold}
async def main():
    freeze = FilesystemFreeze(AgentOptions({path!r}, 60), print)
    async with freeze.held():
        print("frozen", flush=True)
        os.kill(os.getpid(), signal.{signal})
    await freeze.close()
    print(freeze.facts(), flush=True)
asyncio.run(main())
"""


def life(agent: FakeAgent, end: str, hold: float = 1000) -> subprocess.Popen[str]:
    code = LIFE.format(path=agent.path, signal=end, hold=hold)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_at_the_instant(agent: FakeAgent) -> None:
    with life(agent, "SIGKILL") as process:
        assert process.communicate(timeout=60)[0] == "frozen\n"
    until(lambda: not agent.frozen)
    assert agent.done == [STATUS, FREEZE, THAW]


def test_killed_while_the_guest_still_freezes(agent: FakeAgent) -> None:
    arrived, in_time = threading.Event(), threading.Event()

    def told_and_late(agent: FakeAgent) -> bytes:
        arrived.set()
        return late(FREEZE, in_time)(agent)

    agent.instead[FREEZE] = [told_and_late]
    with life(agent, "SIGKILL") as process:
        assert arrived.wait(60)
        process.kill()
        process.wait()
    assert not agent.frozen
    in_time.set()
    until(lambda: THAW in agent.done and not agent.frozen)


def test_killed_and_the_channel_with_us(agent: FakeAgent) -> None:
    """The watchdog makes a new connection."""

    def hung_up(agent: FakeAgent) -> None:
        agent.close_client()

    agent.instead[THAW] = [hung_up]
    with life(agent, "SIGKILL") as process:
        process.wait()
    until(lambda: not agent.frozen)
    assert agent.clients == 2


def test_suspended_at_the_instant(agent: FakeAgent) -> None:
    """The watchdog thaws, and who goes on later knows that it was not of his instant."""
    with life(agent, "SIGSTOP", hold=0.1) as process:
        assert process.stdout is not None
        until(lambda: THAW in agent.done)
        until(lambda: not agent.frozen)
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=60)[0]
    assert "'consistency': 'crash'" in said
    assert "only 0 were still frozen" in said


def run_all(*work: Coroutine[Any, Any, None]) -> None:
    async def ran() -> None:
        await asyncio.gather(*work)

    asyncio.run(ran())


def test_an_agent_that_never_stops_to_talk_stops_nothing_else(agent: FakeAgent) -> None:
    stopped = threading.Event()

    def talks(agent: FakeAgent) -> None:
        assert agent._client is not None
        while not stopped.is_set():
            agent._client.sendall(b"[" * 65536)

    agent.instead[STATUS] = [talks]
    course = Course(agent.path, 0.5)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while not course.was_taken:
            turns += 1
            await asyncio.sleep(0)

    try:
        run_all(course.go(), others())
    finally:
        stopped.set()
    assert turns > 1
    assert course.freeze.facts()["consistency"] == "crash"
