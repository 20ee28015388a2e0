"""`run --keep-...` and `prune --merge`, night after night, with real archives."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, pybackup
from faulty_proxy import FaultyProxy
from object_store import Store, moto_server

NIGHT, DAY = 1_764_208_800, 86400
ENVIRONMENT = {**os.environ, "TZ": "UTC"}


class Nights:
    """A disk that changes a little every day, and what it was on each. Changing: the disk, the number of the night."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.shelf = folder / "shelf"
        self.shelf.mkdir()
        self._noise = random.Random(5)
        self._disk = bytearray(self._noise.randbytes(1 << 20))
        self.states: dict[str, bytes] = {}

    def run(self, *options: str, code: int = 0, **given: Any) -> Outcome:
        at = (self.number * 5 % 16) << 16
        self._disk[at : at + 4096] = self._noise.randbytes(4096)
        (self.folder / "disk.img").write_bytes(self._disk)
        now = NIGHT + self.number * DAY
        done = pybackup(
            *("run", "--incremental", "--time", str(now), *options),
            *("disk.img", given.pop("archive", "shelf/{name}-{now:%Y%m%d}.vma.zst")),
            cwd=self.folder,
            env=ENVIRONMENT,
        )
        assert done.code == code, done.err
        self.states[_stamp(self.number)] = bytes(self._disk)
        self.number += 1
        return done

    def names(self) -> list[str]:
        return sorted(path.name for path in self.shelf.iterdir() if not path.name.startswith("."))

    def check(self) -> None:
        """Every archive that is there restores its night."""
        for name in self.names():
            found = pybackup("restore", self.shelf / name, "-", env=ENVIRONMENT)
            assert found.code == 0, found.err
            assert found.out == self.states[name.removeprefix("disk-").removesuffix(".vma.zst")]

    def prune(self, *options: str, code: int = 0) -> Outcome:
        now = str(NIGHT + self.number * DAY)
        done = pybackup("prune", "--time", now, *options, "shelf", cwd=self.folder, env=ENVIRONMENT)
        assert done.code == code, done.err
        return done


def _stamp(number: int) -> str:
    return subprocess.check_output(["date", "-u", f"-d@{NIGHT + number * DAY}", "+%Y%m%d"], text=True).strip()


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def test_a_run_removes_what_no_rule_keeps_of_its_own_series(nights: Nights) -> None:
    for number in range(6):
        done = nights.run("--keep-last", "2", "--max-chain", "1", "--json")
        assert done.json["pruned"]["error"] is None
        assert done.json["pruned"]["kept"][0] == f"disk-{_stamp(number)}.vma.zst"
    # Full ones and deltas by turns: two are kept, and what the older of these needs.
    assert nights.names() == [f"disk-{_stamp(number)}.vma.zst" for number in (4, 5)]
    nights.run("--keep-last", "2", "--max-chain", "1")
    assert nights.names() == [f"disk-{_stamp(number)}.vma.zst" for number in (4, 5, 6)]
    nights.check()


def test_pruning_that_fails_after_a_good_backup_is_told(nights: Nights) -> None:
    nights.run()
    (nights.shelf / "bad.vma.zst").write_bytes(b"no archive")
    done = nights.run("--keep-last", "1", "--max-chain", "1", code=1)
    name = f"disk-{_stamp(1)}.vma.zst"
    assert done.err.splitlines() == [
        f"pybackup: the archive shelf/{name} is complete, but old ones could not be removed: nothing is removed, for"
        " nobody knows what bad.vma.zst needs: shelf/bad.vma.zst: it is not an archive: neither VMA, nor zstd, nor"
        " gzip; pybackup prune --ignore bad.vma.zst goes on without knowing"
    ]
    assert name in nights.names() and len(nights.names()) == 3
    report = nights.run("--keep-last", "1", "--json", code=1).json
    assert "nobody knows" in report["pruned"]["error"] and report["archive"].endswith(".vma.zst")
    # Another prune is no reason to make the backup again.
    (nights.shelf / "bad.vma.zst").unlink()
    folder = os.open(nights.shelf, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    done = nights.run("--keep-last", "1", "--lock-wait", "1h", code=1)
    assert "another prune is at work" in done.err
    os.close(folder)


def test_keeping_needs_a_place(nights: Nights) -> None:
    for archive in ("-", "|cat"):
        done = nights.run("--keep-last", "1", code=2, archive=archive)
        assert "--" in done.err and len(done.err.splitlines()) == 1


def test_keeping_needs_a_time_in_the_name(nights: Nights) -> None:
    for archive in ("shelf/disk.vma.zst", "{now:%Y%m%d}/disk.vma.zst"):
        done = nights.run("--keep-last", "1", code=2, archive=archive)
        assert "only by their time, and none is found in it" in done.err and len(done.err.splitlines()) == 1
    assert nights.names() == []


def test_a_month_of_nights_merged_at_its_end(nights: Nights) -> None:
    for _ in range(9):
        nights.run()
    done = nights.prune("--keep-daily", "3", "--merge", "--json")
    assert done.json["removed"] == 7 and done.json["error"] is None
    assert nights.names() == [f"disk-{_stamp(number)}.vma.zst" for number in (6, 7, 8)]
    nights.check()
    nights.run()
    assert nights.prune("--keep-daily", "3", "--merge", "-q").err == ""
    assert nights.names() == [f"disk-{_stamp(number)}.vma.zst" for number in (7, 8, 9)]
    nights.check()
    found = pybackup("list", "--json", nights.shelf, env=ENVIRONMENT).json
    assert [one["chain"] for one in found["archives"]] == [2, 1, 0]


def test_a_parent_in_use_stays_until_the_run_is_over(nights: Nights) -> None:
    for _ in range(3):
        nights.run("--max-chain", "1")
    held = open(nights.shelf / nights.names()[0], "rb")  # noqa: SIM115
    with held:
        fcntl.flock(held, fcntl.LOCK_SH)
        found = nights.prune("--keep-last", "1", "--json").json
    assert {one["name"]: one["reasons"] for one in found["archives"] if one["fate"] == "keep"} == {
        nights.names()[0]: ["in use"],
        nights.names()[1]: ["last 1 of 1", "newest"],
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with moto_server() as port, FaultyProxy(port).running() as proxy:
        yield Store(port, proxy, tmp_path, "bucket")


def test_a_chain_in_a_store_is_merged_beside_and_read_before_its_parts_go(nights: Nights, store: Store) -> None:
    for _ in range(5):
        nights.run()
    for name in nights.names():
        store.put(f"shelf/{name}", (nights.shelf / name).read_bytes())
    later = str(int(time.time()) + 2 * DAY)
    done = store.run("prune", "--merge", "--keep-last", "2", "--time", later, "--json", "s3://bucket/shelf")
    names = [f"disk-{_stamp(3)}.merged.vma.zst", f"disk-{_stamp(4)}.vma.zst"]
    assert done.json["removed"] == 4 and done.json["error"] is None
    assert store.keys() == ["shelf/.pybackup-verified", *(f"shelf/{name}" for name in names)]
    for name, number in zip(names, (3, 4), strict=True):
        assert store.run("restore", f"s3://bucket/shelf/{name}", "-").out == nights.states[_stamp(number)]
    found = store.run("list", "--json", "s3://bucket/shelf").json
    assert [(one["series"], one["chain"]) for one in found["archives"]] == [
        ("disk-*.vma.zst", 1),
        ("disk-*.vma.zst", 0),
    ]
