"""Debian's own guest agent: what it freezes, what it refuses, and that it thaws for us; see isolated_agent.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from isolated_agent import SIZE, IsolatedAgent, isolated_agent
from live.processes import DEADLINE, call, info, served, until

from pybackup.core.guest.agent import AgentRefusedError, GuestAgent
from pybackup.core.guest.filesystem_freeze import AgentOptions, FilesystemFreeze

MARK = os.urandom(16) * 256
NOBODY = 65534


@pytest.fixture(name="isolated")
def _isolated(tmp_path: Path, need: Callable[..., None]) -> Iterator[IsolatedAgent]:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    with isolated_agent(tmp_path, need, image) as agent:
        yield agent


def needs_recovery(folder: Path, content: bytes) -> bool:
    """Whether this ext4 is as after a power failure: its journal has to be replayed."""
    (folder / "copy").write_bytes(content)
    told = subprocess.run(["dumpe2fs", "-h", str(folder / "copy")], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" in told


def frozen_once(path: str, at_the_instant: Callable[[], None]) -> tuple[dict[str, object], list[str]]:
    """The facts of one freeze, and what the user was told."""
    told: list[str] = []
    freeze = FilesystemFreeze(AgentOptions(path, 30), told.append)

    async def ran() -> None:
        async with freeze.held():
            at_the_instant()
        await freeze.close()

    asyncio.run(ran())
    return freeze.facts(), told


def test_what_is_frozen_is_whole_on_its_disk(isolated: IsolatedAgent, tmp_path: Path) -> None:
    (isolated.data / "file").write_bytes(MARK)
    before = isolated.image.read_bytes()
    at_the_instant: list[bytes] = []
    facts, told = frozen_once(isolated.path, lambda: at_the_instant.append(isolated.image.read_bytes()))
    assert (facts["consistency"], facts["filesystems"], told) == ("filesystem", 1, [])
    assert MARK in at_the_instant[0]
    assert needs_recovery(tmp_path, before)
    assert not needs_recovery(tmp_path, at_the_instant[0])
    (isolated.data / "file").write_bytes(b"it goes on")


def test_a_backup_of_the_disk_in_use(tmp_path: Path, need: Callable[..., None]) -> None:
    """From the guest's write to the archive: a filesystem on a disk of ours, which is restored without recovery."""
    need("nbdfuse")
    link, where = tmp_path / "agent", tmp_path / "fuse"
    where.mkdir()
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(SIZE)
    with served(tmp_path, "--guest-agent", str(link), str(tmp_path / "disk.img")) as server:
        with _nbdfuse(where, server.lines[0]) as disk, isolated_agent(tmp_path, need, disk) as agent:
            (agent.data / "file").write_bytes(MARK)
            for name, path in (("without", "/nowhere/agent.sock"), ("with", agent.path)):
                link.unlink(missing_ok=True)
                link.symlink_to(path)
                call("run", f"serve:{server.control}", str(tmp_path / f"{name}.vma"))
            (agent.data / "file").write_bytes(b"it goes on")
    found = {}
    for name in ("without", "with"):
        call("restore", str(tmp_path / f"{name}.vma"), str(tmp_path / f"{name}.raw"))
        content = (tmp_path / f"{name}.raw").read_bytes()
        found[info(tmp_path / f"{name}.vma")["consistency"]] = needs_recovery(tmp_path, content)
    assert found == {"crash": True, "filesystem": False}
    assert MARK in content


@contextlib.contextmanager
def _nbdfuse(where: Path, uri: str) -> Iterator[Path]:
    process = subprocess.Popen(["nbdfuse", str(where), uri], stderr=subprocess.PIPE)
    try:
        until(lambda: process.poll() is not None or (where / "nbd").exists())
        if process.poll() is not None:
            pytest.skip(f"cannot mount the disk by FUSE: {process.communicate()[1].decode().strip()}")
        yield where / "nbd"
    finally:
        if process.poll() is None:
            # Lazy: a test that failed may still have it open.
            subprocess.run(["umount", "--lazy", str(where)], check=True)
        process.communicate(timeout=DEADLINE)


def test_one_that_was_frozen_by_somebody_else(isolated: IsolatedAgent) -> None:
    async def ran() -> None:
        other = await GuestAgent.connect(isolated.path)
        assert await other.ask("guest-fsfreeze-freeze", 30) == 1
        # What it answers to a second freeze is what we take for somebody else's.
        with pytest.raises(AgentRefusedError) as refused:
            await other.ask("guest-fsfreeze-freeze", 30)
        assert "disabled" in refused.value.reason
        other.close()
        told: list[str] = []
        freeze = FilesystemFreeze(AgentOptions(isolated.path, 30), told.append)
        async with freeze.held():
            pass
        assert freeze.facts()["consistency_reason"] == "the guest's filesystems were frozen already, by somebody else"
        assert isolated.thaw_by_hand(), "it is not ours to thaw"
        other = await GuestAgent.connect(isolated.path)
        await other.ask("guest-fsfreeze-thaw", 30)
        other.close()

    asyncio.run(ran())


def test_thawed_when_we_are_killed(isolated: IsolatedAgent) -> None:
    code = f"""
import asyncio, os, signal
from pybackup.core.guest.filesystem_freeze import AgentOptions, FilesystemFreeze
async def main():
    async with FilesystemFreeze(AgentOptions({isolated.path!r}, 30), print).held():
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL

    async def status() -> object:
        agent = await GuestAgent.connect(isolated.path)
        try:
            return await agent.ask("guest-fsfreeze-status", 30)
        finally:
            agent.close()

    until(lambda: asyncio.run(status()) == "thawed")
    (isolated.data / "file").write_bytes(b"it goes on")


# -- one that may not freeze --


@pytest.fixture(name="blocked")
def _blocked(need: Callable[..., None]) -> Iterator[str]:
    """The socket of an agent to which a freeze is forbidden, and which the kernel would not let freeze either."""
    need("qemu-ga")
    with tempfile.TemporaryDirectory(prefix="pybackup-agent-") as where:
        with _without_freeze(where) as path:
            yield path


@contextlib.contextmanager
def _without_freeze(where: str) -> Iterator[str]:
    path = f"{where}/agent.sock"
    command = ["qemu-ga", "--method=unix-listen", f"--path={path}", f"--statedir={where}", f"--pidfile={where}/pid"]
    harmless: dict[str, Any] = {}
    if os.geteuid() == 0:
        os.chown(where, NOBODY, NOBODY)
        harmless = {"user": NOBODY, "group": NOBODY, "extra_groups": ()}
    command.append("--block-rpcs=guest-fsfreeze-freeze")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, **harmless)
    try:
        until(lambda: process.poll() is not None or os.path.exists(path))
        assert process.poll() is None, process.communicate()[1].decode()
        asyncio.run(_is_forbidden(path))
        yield path
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


async def _is_forbidden(path: str) -> None:
    agent = await GuestAgent.connect(path)
    commands = (await agent.ask("guest-info"))["supported_commands"]
    agent.close()
    assert [one["enabled"] for one in commands if one["name"] == "guest-fsfreeze-freeze"] == [False]


def test_one_that_may_not_freeze(blocked: str) -> None:
    facts, told = frozen_once(blocked, lambda: None)
    assert facts["consistency"] == "crash"
    assert "guest-fsfreeze-freeze has been disabled" in json.dumps(facts)
    assert told == []
