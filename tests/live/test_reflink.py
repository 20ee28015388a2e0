"""Raw files in use on XFS and btrfs: what a reflink snapshot holds, and that nothing stays of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from command_line import PROGRAM, listing, pybackup, wait_until
from conftest import need as needed
from reflink_disk import KINDS, mounted

from pybackup.core.devices.raw import RawDevice
from pybackup.core.endpoints.reflink import clone, snapshot

BLOCK = 1 << 16
BLOCKS = 256
SIZE = BLOCK * BLOCKS
DEADLINE = 60.0

GUEST = f"""
import os, sys
disk = os.open(sys.argv[1], os.O_RDWR)
for generation in range(1, 1 << 30):
    for block in range({BLOCKS}):
        os.pwrite(disk, generation.to_bytes(4, "big") * {BLOCK // 4}, block * {BLOCK})
"""
"""A guest that writes generation after generation over its whole disk, block after block, in order."""


@pytest.fixture(scope="module", params=KINDS)
def filesystem(request: pytest.FixtureRequest) -> Iterator[Path]:
    with mounted(request.param, needed) as where:
        yield where


@pytest.fixture
def disk(filesystem: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = filesystem / "vm"
    folder.mkdir()
    path = folder / "disk.img"
    path.write_bytes(bytes(SIZE))
    yield path
    for one in folder.iterdir():
        one.unlink()
    folder.rmdir()


@contextmanager
def running(*command: str | Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed when the block ends."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def backup_that_has_begun(disk: Path, archive: Path, speed: str) -> Iterator[subprocess.Popen[str]]:
    """A backup that has its snapshot and has read a part of it, and is stopped."""
    arguments = ("run", "--speed", speed, "--trace", "copy.read", disk, archive)
    with running(*PROGRAM, *arguments) as process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["trace"] == "copy.read"
        process.send_signal(signal.SIGSTOP)
        yield process


def generation(disk: Path) -> int:
    """The one that the guest writes, or has just written."""
    with disk.open("rb") as file:
        return int.from_bytes(file.read(4), "big")


def restored(archive: Path, folder: Path) -> bytes:
    target = folder / f"{archive.name}.raw"
    assert pybackup("restore", archive, target).code == 0
    return target.read_bytes()


def kind_of(archive: Path) -> str:
    return str(pybackup("info", "--json", archive).json["about"]["sources"][0]["kind"])


def test_the_archive_holds_one_instant_of_a_disk_that_a_guest_writes_to(disk: Path, tmp_path: Path) -> None:
    archive = tmp_path / "out.vma.zst"
    with running(sys.executable, "-c", GUEST, disk) as guest:
        wait_until(lambda: generation(disk) > 1, "the guest", [guest])
        before = generation(disk)
        with backup_that_has_begun(disk, archive, "8M") as backup:
            after = generation(disk)
            wait_until(lambda: generation(disk) > after + 2, "the guest", [guest])
            backup.send_signal(signal.SIGCONT)
            said = backup.communicate(timeout=DEADLINE)[1]
            assert backup.returncode == 0, said
    content = restored(archive, tmp_path)
    blocks = [content[at : at + BLOCK] for at in range(0, SIZE, BLOCK)]
    assert all(block == block[:4] * (BLOCK // 4) for block in blocks), "a write is torn"
    numbers = [int.from_bytes(block[:4], "big") for block in blocks]
    # The guest was somewhere in one generation: what follows has the one before.
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] - numbers[-1] in (0, 1)
    assert before <= numbers[0] <= after
    assert kind_of(archive) == "raw (reflink)"


def test_nothing_stays_of_a_backup_that_is_killed(disk: Path, tmp_path: Path) -> None:
    disk.write_bytes(os.urandom(SIZE))
    os.sync()
    free = free_bytes(disk)
    with backup_that_has_begun(disk, tmp_path / "out.vma.zst", "64K") as backup:
        names = set(listing(disk.parent))
        overwrite(disk)
        assert free - free_bytes(disk) > SIZE // 2, "the clone holds what was overwritten"
        backup.kill()
        backup.communicate()
    assert names == set(listing(disk.parent)) == {"disk.img"}
    # The filesystem gives the space back in the background.
    wait_until(lambda: free - free_bytes(disk) < SIZE // 2, "the space")


def overwrite(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.write(os.urandom(SIZE))


def free_bytes(disk: Path) -> int:
    os.sync()
    told = os.statvfs(disk)
    return told.f_bfree * told.f_frsize


@contextmanager
def qemu_writing(disk: Path, image_format: str) -> Iterator[None]:
    """QEMU has the image open, and has written to it."""
    with running("qemu-io", "-f", image_format, disk) as qemu:
        assert qemu.stdin is not None and qemu.stdout is not None
        qemu.stdin.write("write -P 0x41 0 64k\n")
        qemu.stdin.flush()
        while "wrote 65536" not in (line := qemu.stdout.readline()):
            assert line, qemu.communicate()
        yield


def test_an_image_that_qemu_writes_to(disk: Path, tmp_path: Path, need: Callable[..., None]) -> None:
    need("qemu-io")
    with qemu_writing(disk, "raw"):
        refused = pybackup("run", "--snapshot", "none", disk, tmp_path / "none.vma.zst")
        assert refused.code == 6
        assert "in use by another program (QEMU image lock); pybackup run qmp:SOCKET" in refused.err
        for how in ("auto", "reflink"):
            archive = tmp_path / f"{how}.vma.zst"
            done = pybackup("run", "-v", "--snapshot", how, disk, archive)
            assert done.code == 0, done.err
            assert done.err.startswith(
                f"pybackup: note: {disk} is in use: the backup is a snapshot of it, as a power failure would have left"
                " the disk\n"
            )
            assert restored(archive, tmp_path)[: 2 * BLOCK] == b"\x41" * BLOCK + bytes(BLOCK)
        assert pybackup("run", disk, tmp_path / "cron.vma.zst").err == ""
        assert pybackup("compare", tmp_path / "auto.vma.zst", disk).code == 0


def test_a_qcow2_image_in_use_is_never_cloned(disk: Path, tmp_path: Path, need: Callable[..., None]) -> None:
    need("qemu-io", "qemu-img")
    image = disk.with_name("disk.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    archive = tmp_path / "out.vma.zst"
    with qemu_writing(image, "qcow2"):
        assert pybackup("run", image, archive).code == 6
        assert pybackup("run", "--format", "raw", image, archive).code == 6
        refused = pybackup("run", "--format", "raw", "--snapshot", "reflink", image, archive)
        assert refused.code == 3
        assert "it looks like a qcow2 image, and is not raw" in refused.err
    assert not archive.exists()


def test_a_disk_at_rest_needs_no_note_and_may_be_used_at_once(disk: Path, tmp_path: Path) -> None:
    with disk.open("r+b") as file:
        file.write(b"old")
    archive = tmp_path / "out.vma.zst"
    with backup_that_has_begun(disk, archive, "8M") as backup:
        with disk.open("r+b") as file:
            file.write(b"new")
        disk.unlink()
        backup.send_signal(signal.SIGCONT)
        said = backup.communicate(timeout=DEADLINE)[1]
        assert backup.returncode == 0, said
        assert "note" not in said
    assert restored(archive, tmp_path)[:4] == b"old\0"


def test_a_snapshot_keeps_size_and_holes_and_leaves_the_file_alone(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.truncate(0)
        file.truncate((1 << 30) + 512)
        file.seek(1 << 20)
        file.write(b"x" * BLOCK)

    async def look() -> None:
        with closing(FileOf(disk)) as device:
            before = device.raw.fingerprint()
            frozen = snapshot(device.raw)
            assert device.raw.fingerprint() == before
            assert frozen.size == (1 << 30) + 512
            assert [one.zero for one in await frozen.extents(0, frozen.size)] == [True, False, True]
            assert await frozen.pread((1 << 20) - 1, 3) == b"\0xx"
            assert (os.fstat(frozen.fileno()).st_nlink, os.fstat(frozen.fileno()).st_mode & 0o777) == (0, 0o600)
            await frozen.close()

    asyncio.run(look())


class FileOf:
    """A raw device of a path, to be closed."""

    def __init__(self, path: Path) -> None:
        self.raw = RawDevice.open(path)

    def close(self) -> None:
        os.close(self.raw.fileno())


def test_the_clone_of_a_link_lies_where_the_file_is(disk: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.img"
    link.symlink_to(disk)
    assert pybackup("run", "--snapshot", "reflink", link, tmp_path / "out.vma.zst").code == 0


@pytest.mark.parametrize(("folder_has_it", "file_has_it"), [(False, True), (True, False), (True, True)])
def test_copy_on_write_may_be_turned_off_for_the_file_or_the_folder(
    disk: Path, folder_has_it: bool, file_has_it: bool, need: Callable[..., None]
) -> None:
    need("chattr")
    one = disk.with_name("one.img")
    one.touch()
    if subprocess.run(["chattr", "+C", one], check=False, capture_output=True).returncode:
        pytest.skip("this filesystem has no such attribute")
    subprocess.run(["chattr", "+C" if file_has_it else "-C", one], check=True)
    one.write_bytes(b"x" * BLOCK)
    subprocess.run(["chattr", "+C" if folder_has_it else "-C", disk.parent], check=True)
    with one.open("rb") as file:
        cloned = clone(file.fileno(), str(one))
    assert os.pread(cloned, SIZE, 0) == b"x" * BLOCK
    os.close(cloned)
