"""Nights of a real disk, merged: in a folder, in a store, onto a full disk."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import decode
from command_line import listing, pybackup
from faulty_proxy import FaultyProxy
from object_store import Store, moto_server

CLUSTER = 65536
NIGHTS = 4
_numbers = itertools.count()


def write_some(disk: Path, seed: int) -> None:
    """What a guest writes in a day; in the end the disk is larger."""
    dice = random.Random(seed)
    with disk.open("r+b") as file:
        for _ in range(6):
            file.seek(dice.randrange(60) * CLUSTER)
            file.write(dice.choice([dice.randbytes(5000), bytes(2 * CLUSTER)]))
        file.truncate(disk.stat().st_size + 1000 * seed)


def back_up(disk: Path, number: int) -> list[str]:
    """The arguments of the run that makes ``number``.vma."""
    base = ["--base", f"{number - 1}.vma"] if number else []
    return ["run", disk.name, f"{number}.vma", "--time", str(1_700_000_000 + number), *base]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    content = random.Random(9).randbytes(50 * CLUSTER) + bytes(10 * CLUSTER)
    (tmp_path / "disk.img").write_bytes(content)
    return tmp_path / "disk.img"


def test_nights_of_a_disk(disk: Path) -> None:
    folder = disk.parent
    for number in range(NIGHTS):
        assert pybackup(*back_up(disk, number), cwd=folder).code == 0
        write_some(disk, number)
    assert pybackup(*back_up(disk, NIGHTS), cwd=folder).code == 0
    merged = pybackup("merge", f"{NIGHTS}.vma", "full.vma", "--json", "--verify", cwd=folder)
    assert merged.code == 0, merged.err
    assert [Path(one).name for one in merged.json["merged"]] == [f"{number}.vma" for number in range(NIGHTS, -1, -1)]
    assert pybackup("compare", "full.vma", "disk.img", cwd=folder).code == 0
    # It takes the place of the newest, for what comes after it; the others are needed no more.
    write_some(disk, 99)
    assert pybackup("run", "disk.img", "next.vma", "--base", f"{NIGHTS}.vma", cwd=folder).code == 0
    for number in range(NIGHTS + 1):
        (folder / f"{number}.vma").unlink()
    assert pybackup("compare", "next.vma", "disk.img", cwd=folder).code == 0
    again = pybackup("merge", "next.vma", "all.vma", cwd=folder)
    assert again.code == 0, again.err
    assert pybackup("compare", "all.vma", "disk.img", cwd=folder).code == 0
    told = json.loads(pybackup("info", "--json", "all.vma", cwd=folder).out)
    assert not told["delta"] and told["about"]["sources"][0]["name"] == "disk.img"


def test_a_full_disk(disk: Path) -> None:
    folder = disk.parent
    assert pybackup(*back_up(disk, 0), cwd=folder).code == 0
    before = listing(folder)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        outcome = pybackup("merge", "0.vma", "-", cwd=folder, stdout=full)
    finally:
        os.close(full)
    assert outcome.code == 5 and "no space is left" in outcome.err
    assert listing(folder) == before


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with moto_server() as port:
        yield port


def test_nights_in_a_store(port: int, disk: Path) -> None:
    with FaultyProxy(port).running() as proxy:
        store = Store(port, proxy, disk.parent, f"bucket-{next(_numbers)}")
        for number in range(2):
            command = back_up(disk, number)
            assert pybackup(*command, cwd=disk.parent).code == 0
            store.put(f"nights/{number}.vma", (disk.parent / f"{number}.vma").read_bytes())
            night_before = disk.read_bytes()
            write_some(disk, number + 7)
        night = store.url("nights/1.vma")
        store.fails(2, "would be replaced by the archive made of it", "merge", night, night, "--force")
        store.run("merge", night, store.url("full.vma"))
        assert sorted(store.keys()) == ["full.vma", "nights/0.vma", "nights/1.vma"]
        assert decode(store.content("full.vma")).drives == {"disk": night_before}
