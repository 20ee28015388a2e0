"""The examples of pybackup-api(7), of using pybackup as a library, do what the page says."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from archives import decode, encode
from chains import make_night
from live.processes import restored
from manual_pages import MAN, examples

SIZE = 3 << 20


def example() -> str:
    """The first program that the page shows."""
    return examples(MAN / "pybackup-api.7")[0]


def test_the_example_of_the_page(tmp_path: Path) -> None:
    before = random.Random(1).randbytes(SIZE)
    (tmp_path / "disk.img").write_bytes(before)
    subprocess.run([sys.executable, "-W", "error", "-c", example()], cwd=tmp_path, check=True)
    after = (tmp_path / "disk.img").read_bytes()
    archived = restored(tmp_path / "disk.vma.zst", tmp_path / "out")["disk"]
    for content in (after, archived):
        assert content[:4096] + content[4104:] == before[:4096] + before[4104:]
    assert after[4096:4104] != before[4096:4104]


def test_the_example_says_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(SIZE))
    (tmp_path / "disk.vma.zst").write_text("not to be replaced")
    done = subprocess.run([sys.executable, "-c", example()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "exists already" in done.stderr
    assert (tmp_path / "disk.vma.zst").read_text() == "not to be replaced"


def test_the_example_of_a_restore(tmp_path: Path) -> None:
    (tmp_path / "disk.vma.zst").write_bytes(encode({"disk": bytes(range(256)) * 1024}))
    code = examples(MAN / "pybackup-api.7")[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "restored.raw").read_bytes() == bytes(range(256)) * 1024
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "restored.raw exists already" in done.stderr


def test_the_example_of_a_merge(tmp_path: Path) -> None:
    monday = make_night({"disk": bytes(range(256)) * 1024}, seed=1)
    tuesday = make_night({"disk": bytes(range(255, -1, -1)) * 1024}, monday, seed=2)
    (tmp_path / "monday.vma.zst").write_bytes(monday.archive)
    (tmp_path / "tuesday.vma.zst").write_bytes(tuesday.archive)
    code = examples(MAN / "pybackup-api.7")[2]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)
    assert decode((tmp_path / "full.vma.zst").read_bytes()).drives == tuesday.disks
