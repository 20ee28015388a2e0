"""Games with hostile peers: a real server and its clients, or real runs and their servers."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from archives import decode
from hostile.clients import HostileClients
from hostile.honest import HonestClient
from hostile.servers import LIES, hostile_server
from live.guests import Guest, History
from live.processes import Server, call, served, until
from peak_memory import peak_of

SIZES = {"a": (3 << 20) + 512, "b": 2 << 20}
MIDDLE = 1 << 20
HOSTILE = 4
"""Threads of hostile clients."""
MOST_MEMORY = 300 << 20
"""Bytes that a process of ours may have had at its highest."""


class Beside(NamedTuple):
    """What was done beside each other in a game."""

    hostile: int
    honest: int
    backups: int


def play_against_clients(folder: Path, seed: int, backups: int = 3) -> Beside:
    """Hostile clients, an honest one, a guest of which the instant can be told, and one backup after the other."""
    draw = random.Random(seed)
    disks = {name: draw.randbytes(size // 2) + bytes(size - size // 2) for name, size in SIZES.items()}
    for name, content in disks.items():
        (folder / f"{name}.img").write_bytes(content)
    history = History(seed, ["a"], 0, MIDDLE)
    said = folder / "said"
    with (
        said.open("w") as stderr,
        served(folder, *(f"{name}={folder / name}.img" for name in SIZES), stderr=stderr) as server,
    ):
        before = _descriptors(server)
        honest = HonestClient(seed, server.nbd, "a", MIDDLE, SIZES["a"])
        hostile = [HostileClients(seed * HOSTILE + number, server.nbd, "a", "b") for number in range(HOSTILE)]
        with ExitStack() as stack:
            guest = stack.enter_context(Guest(server.nbd, history, ["a"]))
            for one in (honest, *hostile):
                one.start()
                stack.callback(one.stop)
            for number in range(backups):
                _back_up(server, folder, number, draw)
        until(lambda: server.ask("status")["connections"] == 0)
        until(lambda: len(_descriptors(server)) <= len(before))
        assert _peak_memory(server) < MOST_MEMORY
    assert all(" is cut off: " in line for line in said.read_text().splitlines()), said.read_text()
    left = (folder / "a.img").read_bytes()
    assert left[MIDDLE:] == honest.model
    assert history.after(disks, guest.done) == {"a": left[:MIDDLE]}
    instants = [_instant(folder / f"{number}.vma.zst", history, disks) for number in range(backups)]
    assert instants == sorted(instants)
    return Beside(sum(one.count for one in hostile), honest.requests, backups)


def _back_up(server: Server, folder: Path, number: int, draw: random.Random) -> None:
    options = ["--speed", draw.choice(["0", "4M"]), "--level", "1"]
    call("run", "--quiet", f"serve:{server.control}", str(folder / f"{number}.vma.zst"), *options)


def _instant(archive: Path, history: History, before: dict[str, bytes]) -> int:
    """The number of the guest's changes that a sound archive holds."""
    return history.instant(before, decode(archive.read_bytes()).drives)


def _descriptors(server: Server) -> list[str]:
    """What it has open."""
    return os.listdir(f"/proc/{server.process.pid}/fd")


def _peak_memory(server: Server) -> int:
    """Bytes."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the kernel does not tell")


def play_against_server(folder: Path, seed: int) -> str:
    """One backup from a hostile server, and one restore to one: how it ended.

    It ends, with a sentence; and what is called done is done, unless the server has lied where nobody can see it.
    """
    draw = random.Random(seed)
    size = draw.choice([1, 65_536, 200_000, 3 << 20])
    content = draw.randbytes(size // 2) + bytes(size - size // 2)
    archive, whole = folder / "x.vma.zst", folder / "whole.vma.zst"
    address = f"nbd+unix:///disk?socket={folder / 'sock'}"
    with hostile_server(str(folder / "sock"), content, draw) as (_, told):
        read = _end(["run", "--quiet", f"disk={address}", str(archive)], {0, 3})
    if read == 0:
        drives = decode(archive.read_bytes()).drives
        assert LIES & set(told) or drives == {"disk": content}, told
    assert {path.name for path in folder.iterdir()} <= {"x.vma.zst" if read == 0 else "", "sock"}
    (folder / "sock").unlink(missing_ok=True)
    (folder / "disk.img").write_bytes(content)
    call("run", "--quiet", str(folder / "disk.img"), str(whole))
    with hostile_server(str(folder / "sock"), bytes(size), draw) as (disk, told):
        written = _end(["restore", "--quiet", "--force", str(whole), address], {0, 5})
        assert written or LIES & set(told) or disk.disk == content, told
    return f"run {read}, restore {written}"


def _end(arguments: list[str], codes: set[int]) -> int:
    """Run pybackup to its end, which must be one of these exit codes, told in a sentence, without much memory."""
    code, mib, said = peak_of(*arguments)
    assert code in codes, f"{arguments} ended with {code}: {said}"
    assert "Traceback" not in said, said
    assert not said or code, said
    assert len(said.splitlines()) == (code != 0), said
    assert mib * (1 << 20) < MOST_MEMORY, f"{mib} MiB"
    return code
