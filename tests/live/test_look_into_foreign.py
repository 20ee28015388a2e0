"""Backups that other programs made, as vzdump writes them, looked into: plain as they are, others after a merge."""

from __future__ import annotations

import gzip
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import foreign_vma
import pytest
import zstandard
from command_line import end, pybackup, start

CLUSTER = 65536
DISKS = {
    "drive-scsi0": random.Random(1).randbytes(70 * CLUSTER) + bytes(30 * CLUSTER),
    "drive-scsi1": bytes(5 * CLUSTER) + random.Random(2).randbytes(8 * CLUSTER + 512),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "vzdump-qemu-100.vma"
    path.write_bytes(foreign_vma.write(DISKS, {"qemu-server.conf": b"cores: 2\n"}))
    return path


def in_one_frame(content: bytes) -> bytes:
    """As `zstd --rsyncable` writes what comes through a pipe: its size is not told."""
    compressor = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    return compressor.compress(content) + compressor.flush()


def test_a_plain_one_is_served_and_compared_and_read_in_part(
    need: Callable[..., None], plain: Path, tmp_path: Path
) -> None:
    need("nbdcopy")
    serving = start("serve", "--socket", tmp_path / "nbd.sock", plain)
    assert serving.stdout is not None
    for name, disk in DISKS.items():
        uri = next(line for line in iter(serving.stdout.readline, b"") if name.encode() in line).decode().strip()
        subprocess.run(["nbdcopy", uri, tmp_path / f"{name}.raw"], check=True)
        assert (tmp_path / f"{name}.raw").read_bytes() == disk
    assert end(serving, signal.SIGTERM).code == 0
    part = pybackup("restore", plain, "-", "--drive", "drive-scsi0", "--offset", "69K", "--length", "3M")
    assert (part.code, part.out) == (0, DISKS["drive-scsi0"][69 << 10 : (69 << 10) + (3 << 20)]), part.err
    assert pybackup("compare", plain, "--drive", "drive-scsi1", tmp_path / "drive-scsi1.raw").code == 0


@pytest.mark.parametrize("kind", ["zst", "gz", "lzo"])
def test_a_compressed_one_says_what_makes_it_seekable(
    need: Callable[..., None], plain: Path, tmp_path: Path, kind: str
) -> None:
    packed, content = tmp_path / f"{plain.name}.{kind}", plain.read_bytes()
    if kind == "lzo":
        need("lzop")
        packed.write_bytes(subprocess.run(["lzop", "-c"], input=content, stdout=subprocess.PIPE, check=True).stdout)
    else:
        packed.write_bytes(in_one_frame(content) if kind == "zst" else gzip.compress(content, 1))
    refused = pybackup("restore", packed, "-", "--drive", "drive-scsi0", "--offset", "0", "--length", "64K")
    assert refused.code == 4
    _, command, rest = refused.err.split("`")
    assert "makes an archive of it that has one" in rest
    new = tmp_path / "new.vma.zst"
    command = command.replace("ARCHIVE", str(packed)).replace("NEW", str(new))
    # The command that was named, with this environment's program.
    words = f"pybackup() {{ {sys.executable} -m pybackup.cli \"$@\"; }}; "
    done = subprocess.run(["bash", "-o", "pipefail", "-c", words + command], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    part = pybackup("restore", new, "-", "--drive", "drive-scsi1", "--offset", "256K", "--length", "512K")
    assert part.out == DISKS["drive-scsi1"][256 << 10 : 768 << 10]
