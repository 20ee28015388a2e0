"""Chains of backups of a QEMU whose guest writes all the while, by its dirty bitmaps: 20 nights, or STRESS_NIGHTS.

Before each night nothing happens, or a run is killed at a random instant, with or without its guardian, or QEMU is
restarted. Each night is restored, and must be what the disks were at one instant. ``STRESS_SEED=N`` repeats the same
draws; what happens at an instant is still the machine's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import subprocess
import tempfile
from pathlib import Path

import pytest
from live.guests import Guest, History
from live.killed_runs import Killed, guardians_of, kill
from live.processes import call, until
from live.qemu_processes import SIZES, Qemu, make_disks, storage_daemon

NAMES = list(SIZES)


def incremental(qemu: Qemu, archive: Path) -> list[str]:
    return qemu.run(archive, "--incremental", "--json", "-q", "--nbd-socket", qemu.guests)


def killed(qemu: Qemu, archive: Path, who: Killed, seconds: float) -> None:
    client = subprocess.Popen(incremental(qemu, archive), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with contextlib.suppress(subprocess.TimeoutExpired):
        client.wait(seconds)
    kill(client, who)
    client.communicate()
    until(lambda: not guardians_of(client.pid))


def contents(archive: Path) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        call("restore", str(archive), folder)
        return {path.stem: path.read_bytes() for path in Path(folder).iterdir()}


class Game:
    """Nights of one machine. Changing: what its disks were when the guest began, which does so after every restart."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        self.archives = folder / "archives"
        self.archives.mkdir()
        self.ways: set[str] = set()
        self.number = 0

    def uptime(self, before: dict[str, bytes], nights: int) -> dict[str, bytes]:
        """So many nights between two restarts of QEMU; what the disks were at the end."""
        history = History(self.draw.randrange(1 << 16), NAMES, 0, SIZES["b"])
        with storage_daemon(self.folder, guests=True) as qemu:
            nodes = qemu.nodes()
            with Guest(qemu.guests, history, NAMES) as guest:
                for _ in range(nights):
                    self.night(qemu, guest, before)
            qemu.check_clean(nodes)
        parts = history.after(before, guest.done)
        return {name: parts[name] + before[name][SIZES["b"] :] for name in NAMES}

    def night(self, qemu: Qemu, guest: Guest, before: dict[str, bytes]) -> None:
        self.number += 1
        if self.draw.random() < 0.5:
            who = self.draw.choice([Killed.RUN, Killed.ALL])
            killed(qemu, self.archives / f"{self.number}-killed.vma.zst", who, self.draw.uniform(0.2, 2))
        archive, done = self.archives / f"{self.number}.vma.zst", guest.done
        run = subprocess.run(incremental(qemu, archive), capture_output=True, text=True, timeout=120)
        assert (run.returncode, run.stderr) == (0, "")
        assert done <= guest.history.instant(before, contents(archive)) <= guest.done + 1
        self.ways |= {one["way"] for one in json.loads(run.stdout)["ways"]}


def test_nights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("STRESS_SEED") or secrets.randbits(32))
    nights = int(os.environ.get("STRESS_NIGHTS") or 20)
    with capsys.disabled():
        print(f"STRESS_SEED={seed}: {nights} nights", flush=True)
    game = Game(tmp_path, random.Random(seed))
    disks = make_disks(tmp_path)
    while game.number < nights:
        disks = game.uptime(disks, game.draw.randint(2, 5))
    assert game.ways == {"full", "digest", "bitmap"}
