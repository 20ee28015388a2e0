"""Other programs read what we write: an independent VMA reader, zstd, and Python's zstandard."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from command_line import listing, pybackup
from conftest import need

NOISE = random.Random(12)
DISKS = {
    "scsi0": NOISE.randbytes(5 << 20) + bytes(6 << 20) + b"the end".ljust(1024, b"\0"),
    "virtio1": bytes(65536 * 3) + NOISE.randbytes(512),
}
ODD = NOISE.randbytes(100_001)
CONFIG = b"cores: 2\nscsi0: local:100/vm-100-disk-0.raw\n"
VMA_EXTRACT = shutil.which("vma-extract", path=str(Path(sys.executable).parent))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for name, disk in (*DISKS.items(), ("odd", ODD)):
        (folder / f"{name}.img").write_bytes(disk)
    (folder / "qemu-server.conf").write_bytes(CONFIG)
    for archive, options in {"a.vma.zst": ["--frame-size", "256K"], "a.vma": ["--compress", "none"]}.items():
        inputs = ["scsi0.img", "virtio1.img", "odd.img", "-c", "qemu-server.conf", archive]
        assert pybackup("run", *inputs, *options, cwd=folder).code == 0
    return folder


@pytest.mark.parametrize("archive", ["a.vma.zst", "a.vma"])
def test_an_independent_reader_extracts_the_same_disks(made: Path, tmp_path: Path, archive: str) -> None:
    if VMA_EXTRACT is None:
        pytest.skip("vma-extract of dissect.archive is not installed")
    plain = tmp_path / "plain.vma"
    content = (made / archive).read_bytes()
    if archive.endswith(".zst"):
        need("zstd")
        content = subprocess.run(["zstd", "-dc"], input=content, stdout=subprocess.PIPE, check=True).stdout
    plain.write_bytes(content)
    (tmp_path / "out").mkdir()
    subprocess.run([VMA_EXTRACT, "-o", tmp_path / "out", plain], check=True, capture_output=True)
    found = listing(tmp_path / "out")
    assert found.pop("qemu-server.conf") == CONFIG
    # It writes whole clusters: the last one is filled up with zeros.
    expected = [disk.ljust(-(-len(disk) // 65536) * 65536, b"\0") for disk in (*DISKS.values(), ODD)]
    assert sorted(map(len, expected)) == sorted(len(content or b"") for content in found.values())
    for disk in expected:
        assert disk in found.values()


def test_zstd_tests_lists_and_decompresses_it(made: Path) -> None:
    need("zstd")
    archive = made / "a.vma.zst"
    subprocess.run(["zstd", "-tq", archive], check=True)
    subprocess.run(["zstd", "-lq", archive], check=True, capture_output=True)
    plain = subprocess.run(["zstd", "-dc", archive], check=True, stdout=subprocess.PIPE).stdout
    with (
        archive.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader,
    ):
        assert reader.read() == plain
    assert pybackup("verify", "-", stdin=plain).code == 0


def test_what_zstd_compressed_anew_is_an_archive_without_an_index(made: Path, tmp_path: Path) -> None:
    need("zstd")
    again = tmp_path / "again.vma.zst"
    subprocess.run(["zstd", "-q", made / "a.vma", "-o", again], check=True)
    assert pybackup("verify", again).out.endswith(b"without an index\n")
    assert pybackup("restore", again, "-", "--drive", "odd").out == ODD
