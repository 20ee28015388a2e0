"""Random histories by the real program: whatever becomes of disks and archives, what can be restored is right.

Each history is some nights of disks that are written to, zeroed, grow, shrink, come, go and change their order. Between
them archives are merged, pruned, lost, moved, damaged, and runs are killed at a random instant. In the end each archive
that is there gives its night's disks, or is refused; none that verify --chain finds sound is refused, and none that is
whole is. STRESS_HISTORIES=5 of them; STRESS_SEED=N plays one again.
"""

from __future__ import annotations

import os
import random
import secrets
import subprocess
from pathlib import Path

import pytest
from command_line import PROGRAM, pybackup
from histories import CLUSTER, changed

NIGHTS = 14
TIME = 1_700_000_000


class Archives:
    """A folder of archives. Changing: what the disks were of each archive by name, and which were harmed."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.disks_in, self.place, self.aside = folder / "disks", folder / "archives", folder / "aside"
        for one in (self.disks_in, self.place, self.aside):
            one.mkdir()
        self.chance = chance
        self.disks = {"a": chance.randbytes(9 * CLUSTER) + bytes(70 * CLUSTER) + chance.randbytes(777), "b": b"b" * 9}
        self.contents: dict[str, dict[str, bytes]] = {}
        self.harmed = False
        self.log: list[str] = []

    def night(self, number: int) -> None:
        if self.disks:
            self.disks = changed(self.disks, self.chance)
        self.disks = {name: disk or b"\0" for name, disk in self.disks.items()}
        names = list(self.disks)
        self.chance.shuffle(names)
        for name, disk in self.disks.items():
            (self.disks_in / name).write_bytes(disk)
        archive = self.place / f"n-{number:03}.vma.zst"
        options = ["--incremental", "--max-chain", str(self.chance.choice((3, 30))), "--parents", str(self.aside)]
        options += ["--frame-size", str(self.chance.choice((1 << 16, 1 << 18)))]
        options += self.chance.choice(([], ["--verify"], ["--level", "9"]))
        time = TIME + number if self.chance.random() < 0.9 else TIME + self.chance.randrange(NIGHTS)
        arguments = ["run", *options, "--time", str(time), *(f"{one}={self.disks_in / one}" for one in names)]
        if self.chance.random() < 0.2:
            self.kill([*arguments, str(archive)])
            if archive.exists():
                self.contents[archive.name] = dict(self.disks)
                return
        done = pybackup(*arguments, archive)
        assert done.code == 0, done.err
        self.contents[archive.name] = dict(self.disks)

    def kill(self, arguments: list[str]) -> None:
        run = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            run.wait(self.chance.uniform(0.2, 0.7))
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()

    def pick(self) -> Path:
        return self.place / self.chance.choice(sorted(self.contents))

    def happen(self) -> None:
        """Something that becomes of archives."""
        what = self.chance.choice(("nothing", "nothing", "merge", "prune", "prune --merge", "lose", "move", "damage"))
        self.log.append(what)
        archive = self.pick()
        match what:
            case "merge":
                out = self.place / f"m{len(self.log)}-{archive.name}"
                if pybackup("merge", "--parents", self.aside, archive, out).code == 0:
                    self.contents[out.name] = self.contents[archive.name]
                    if self.chance.random() < 0.5:
                        out.replace(archive)
                        del self.contents[out.name]
            case "prune" | "prune --merge":
                options = [*what.split()[1:], "--keep-last", str(self.chance.randrange(1, 6))]
                if self.chance.random() < 0.3:
                    self.kill(["prune", str(self.place), *options])
                else:
                    pybackup("prune", self.place, *options)
                self.contents = {name: disks for name, disks in self.contents.items() if (self.place / name).exists()}
                self.adopt()
            case "lose" if len(self.contents) > 3:
                archive.unlink()
                del self.contents[archive.name]
                self.harmed = True
            case "move" if len(self.contents) > 3:
                archive.rename(self.aside / f"other-{archive.name}")
                del self.contents[archive.name]
                self.harmed = True  # prune knows nothing of what lies aside, and restore is told
            case "damage":
                content = bytearray(archive.read_bytes())
                content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
                archive.write_bytes(content)
                self.harmed = True

    def adopt(self) -> None:
        """What a prune has merged, and was killed before it had its name."""
        for path in self.place.glob("*.vma.zst"):
            if path.name not in self.contents and not path.name.startswith("."):
                number = next(name for name in sorted(self.contents) if name[:5] == path.name[:5])
                self.contents[path.name] = self.contents[number]

    def check(self) -> None:
        for name, disks in self.contents.items():
            archive = self.place / name
            out = self.place.parent / "out"
            out.mkdir(exist_ok=True)
            restored = pybackup("restore", "--force", "--parents", self.aside, archive, out)
            sound = pybackup("verify", "--chain", "-q", "--parents", self.aside, archive).code == 0
            if restored.code == 0:
                found = {path.name.removesuffix(".raw"): path.read_bytes() for path in out.iterdir()}
                assert found == disks, (name, self.log)
            else:
                assert self.harmed, (name, restored.err, self.log)
                assert restored.code == 4 and not sound, (name, restored.err, self.log)
                assert "Traceback" not in restored.err
                assert not list(out.iterdir()) or "damaged" in restored.err, (name, restored.err)
            if not self.harmed:
                assert sound, (name, self.log)
            for path in out.iterdir():
                path.unlink()


def seeds() -> list[int]:
    count = int(os.environ.get("STRESS_HISTORIES", "5"))
    first = int(os.environ.get("STRESS_SEED", secrets.randbelow(1 << 30)))
    return [first] if "STRESS_SEED" in os.environ else [first + number for number in range(count)]


@pytest.mark.parametrize("seed", seeds())
def test_what_can_be_restored_is_right(seed: int, tmp_path: Path) -> None:
    print(f"STRESS_SEED={seed}")
    history = Archives(tmp_path, random.Random(seed))
    for number in range(NIGHTS):
        history.night(number)
        history.happen()
    history.check()
