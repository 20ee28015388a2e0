"""Two disks in use are backed up again and again; every archive holds both of them as they were at one instant."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from conftest import need
from live.guests import Guest, History
from live.processes import PYBACKUP, call, ended, info, restored, served

SIZES = {"a": 12 << 20, "b": (8 << 20) + 66_048}
MIDDLE = 5 << 20


@pytest.fixture(name="images")
def _images(tmp_path: Path) -> dict[str, Path]:
    """Two disks with data, written zeros and holes."""
    images = {}
    for name, size in SIZES.items():
        images[name] = tmp_path / f"{name}.img"
        with images[name].open("wb") as file:
            file.truncate(size)
            for offset in range(0, size - (1 << 20), 3 << 20):
                file.seek(offset)
                file.write(random.Random(offset).randbytes(1 << 20) + bytes(300_000))
    return images


CASES = {
    "plain": ([], [[], ["--speed", "40M"], ["--compress", "none"], ["--verify", "--threads", "1"]]),
    "copy-on-read": (["--copy-on-read"], [[], ["--speed", "20M"]]),
    "fleecing": (["--cow-buffer", "1M", "--fleece", "."], [["--level", "19"], ["--speed", "20M"]]),
}
"""Options of the server, and of one run after the other."""


@pytest.mark.parametrize(("options", "runs"), CASES.values(), ids=CASES)
def test_each_backup_holds_all_disks_as_they_were_at_one_instant(
    tmp_path: Path, images: dict[str, Path], options: list[str], runs: list[list[str]]
) -> None:
    before = {name: path.read_bytes() for name, path in images.items()}
    histories = [History(1, list(SIZES), 0, MIDDLE), History(2, list(SIZES), MIDDLE, SIZES["b"])]
    options = [str(tmp_path) if one == "." else one for one in options]
    bounds = []
    with served(tmp_path, *options, *(f"{name}={path}" for name, path in images.items())) as server:
        with Guest(server.nbd, histories[0], list(SIZES)) as one, Guest(server.nbd, histories[1], list(SIZES)) as two:
            for number, run in enumerate(runs):
                begin = [one.done, two.done]
                call("run", f"serve:{server.control}", str(tmp_path / f"{number}.vma"), *run)
                bounds.append((begin, [one.done, two.done]))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(["a.img", "b.img", *(f"{number}.vma" for number in range(len(runs)))])
    instants = []
    for number, (begin, end) in enumerate(bounds):
        disks = restored(tmp_path / f"{number}.vma", tmp_path / f"restored{number}")
        found = [history.instant(before, disks) for history in histories]
        # The instant lies within the backup, the guests went on, and a change that is not answered may be in it.
        assert all(low <= there <= high + 1 for low, there, high in zip(begin, found, end, strict=True))
        assert found < end
        instants.append(found)
    assert instants == sorted(instants)
    left = {name: path.read_bytes() for name, path in images.items()}
    assert [history.instant(before, left) for history in histories] == [one.done, two.done]


def test_an_archive_streams_to_the_callers_standard_output(tmp_path: Path, images: dict[str, Path]) -> None:
    need("zstd")
    before = {name: path.read_bytes() for name, path in images.items()}
    history = History(3, list(SIZES), 0, SIZES["b"])
    plain = tmp_path / "plain.vma"
    with served(tmp_path, *map(str, images.values())) as server:
        with Guest(server.nbd, history, list(SIZES)), plain.open("wb") as out:
            command = [PYBACKUP, "run", f"serve:{server.control}", "-"]
            run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            subprocess.run(["zstd", "-d", "-c"], stdin=run.stdout, stdout=out, check=True)
            assert ended(run) == (0, "")
    assert history.instant(before, restored(plain, tmp_path / "out")) > 0


def test_ctl_backup_takes_the_options_of_run(tmp_path: Path, images: dict[str, Path]) -> None:
    config = tmp_path / "qemu-server.conf"
    config.write_text("name: guest\n")
    archive = tmp_path / "guest.vma"
    arguments = ["backup", "--speed", "1G", str(archive), "-c", str(config), "--level", "1", "--json"]
    with served(tmp_path, *map(str, images.values())) as server:
        said = call("ctl", server.control, *arguments).stdout
    assert '"archive"' in said
    assert [one["name"] for one in info(archive)["drives"]] == ["a", "b"]
    assert call("config", str(archive), "qemu-server.conf").stdout == "name: guest\n"
    assert restored(archive, tmp_path / "out") == {name: path.read_bytes() for name, path in images.items()}
