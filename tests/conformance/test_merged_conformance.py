"""Other readers read what `pybackup merge` makes: the one that follows the specification, and another program's."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import foreign_vma
import pytest
from chains import make_night
from command_line import listing, pybackup
from conformance.test_format_specification import Directory, frames_of, read_cluster, read_through

NOISE = random.Random(14)
CLUSTER = 65536
VMA_EXTRACT = shutil.which("vma-extract", path=str(Path(sys.executable).parent))
NIGHTS: list[Mapping[str, bytes]] = [
    {
        "scsi0": NOISE.randbytes(90 * CLUSTER) + bytes(70 * CLUSTER) + b"end".ljust(512),
        "vmstate": NOISE.randbytes(99_840),
    }
]
for _ in range(4):
    _disk = bytearray(NIGHTS[-1]["scsi0"])
    for _place in NOISE.sample(range(160), 5):
        _disk[_place * CLUSTER : _place * CLUSTER + 4096] = NOISE.choice([NOISE.randbytes(4096), bytes(4096)])
    NIGHTS.append({"scsi0": bytes(_disk), "vmstate": NOISE.randbytes(99_840)})


def chain(folder: Path) -> str:
    """Writes the nights' archives; the name of the last."""
    night = None
    for number, disks in enumerate(NIGHTS):
        night = make_night(disks, night, seed=number, frame_size=1 << 17)
        (folder / f"night-{number}.vma.zst").write_bytes(night.archive)
    return f"night-{len(NIGHTS) - 1}.vma.zst"


def foreign(folder: Path) -> str:
    """Writes what another program makes of the last night's disks; its name."""
    (folder / "vzdump.vma").write_bytes(foreign_vma.write(NIGHTS[-1], {"notes": b"night 4"}))
    return "vzdump.vma"


@pytest.fixture(scope="module", params=[chain, foreign], ids=["chain", "foreign"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    outcome = pybackup("merge", "--json", request.param(folder), "out.vma.zst", "--level", "1", cwd=folder)
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert len(report["merged"]) == (len(NIGHTS) if request.param is chain else 1)
    assert report["written"] == (folder / "out.vma.zst").stat().st_size
    if request.param is chain:
        assert report["copied"] > report["written"] // 2
    return folder / "out.vma.zst"


def test_a_reader_that_follows_the_specification(merged: Path) -> None:
    archive = merged.read_bytes()
    stream = b"".join(frame.content for frame in frames_of(archive) if frame.magic is None)
    header, drives, clusters = read_through(stream)
    assert drives == dict(NIGHTS[-1])
    assert header.configs == {"notes": b"night 4"}
    memory = next(number for number, drive in header.drives.items() if drive.name == "vmstate")
    assert [one.cluster for one in clusters if one.drive == memory] == [0, 1]
    directory = Directory(archive)
    for number, drive in header.drives.items():
        found = b"".join(read_cluster(archive, directory, number, cluster) for cluster in range(drive.clusters))
        assert found[: drive.size] == NIGHTS[-1][drive.name]


def test_another_programs_reader(merged: Path, tmp_path: Path) -> None:
    if VMA_EXTRACT is None:
        pytest.skip("vma-extract of dissect.archive is not installed")
    stream = b"".join(frame.content for frame in frames_of(merged.read_bytes()) if frame.magic is None)
    (tmp_path / "plain.vma").write_bytes(stream)
    (tmp_path / "out").mkdir()
    subprocess.run([VMA_EXTRACT, "-o", tmp_path / "out", tmp_path / "plain.vma"], check=True, capture_output=True)
    found = listing(tmp_path / "out")
    assert found.pop("notes") == b"night 4"
    expected = [disk.ljust(-(-len(disk) // CLUSTER) * CLUSTER, b"\0") for disk in NIGHTS[-1].values()]
    assert sorted(len(content or b"") for content in found.values()) == sorted(map(len, expected))
    assert all(disk in found.values() for disk in expected)


def test_our_own_commands(merged: Path) -> None:
    assert pybackup("verify", merged).code == 0
    for name, disk in NIGHTS[-1].items():
        assert pybackup("restore", merged, "-", "--drive", name).out == disk
