"""Targets that nobody can have meant: a disk where the archive's name belongs, an archive where a disk goes."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import subprocess
from pathlib import Path

import pytest
from command_line import listing, pybackup

from pybackup.core.archive.open import open_archive
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.endpoints.small_files import SmallFile
from pybackup.core.endpoints.targets import ExistingDisk, NewFile
from pybackup.core.errors import TargetError
from pybackup.core.jobs.restore import RestoreJob
from pybackup.core.places.kinds import LocalPath
from pybackup.core.sinks.archive_signs import is_archive

DISK = random.Random(11).randbytes(200_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "disk.img").write_bytes(DISK)
    assert pybackup("run", "disk.img", "ours.vma", cwd=folder).code == 0
    assert pybackup("run", "disk.img", "plain.vma", "--compress", "none", cwd=folder).code == 0
    return folder


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def holds_archive(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return is_archive(fd)
    finally:
        os.close(fd)


def test_archives_are_known_from_all_else(folder: Path) -> None:
    plain, ours = (folder / "plain.vma").read_bytes(), (folder / "ours.vma").read_bytes()
    zstd = subprocess.run(["zstd", "-c"], input=plain, capture_output=True, check=True).stdout
    dump = subprocess.run(["zstd", "-c"], input=DISK, capture_output=True, check=True).stdout
    archives = [plain, ours, zstd, gzip.compress(plain), plain[:-1], ours[: len(ours) // 2], bytes(4096) + ours[4096:]]
    others = [b"", b"x", DISK, dump, gzip.compress(DISK), b"VMA\0" + DISK, ours[1000:-9], DISK + ours[-9:]]
    for content, expected in [(one, True) for one in archives] + [(one, False) for one in others]:
        (folder / "one").write_bytes(content)
        assert holds_archive(folder / "one") == expected, content[:20]


FORGOTTEN = "was the archive's name forgotten?"


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_disk_is_not_taken_for_the_archive(folder: Path, force: tuple[str, ...]) -> None:
    (folder / "e.img").write_bytes(DISK[::-1])
    before = listing(folder)
    for arguments in (("disk.img", "e.img"), ("nbd=disk.img", "disk.img", "e.img")):
        done = pybackup("run", *force, *arguments, cwd=folder)
        assert (done.code, len(done.err.splitlines())) == (5, 1)
        assert FORGOTTEN in done.err
        assert "--force replaces" not in done.err
    assert FORGOTTEN in pybackup("run", *force, "disk.img", cwd=folder).err
    (folder / "job.toml").write_text('sources = "disk.img"\narchive = "e.img"\nforce = true')
    assert FORGOTTEN in pybackup("run", "--job", "job.toml", cwd=folder).err
    (folder / "job.toml").unlink()
    assert listing(folder) == before


def test_force_replaces_archives_and_empty_files(folder: Path) -> None:
    (folder / "empty").touch()
    for target in ("ours.vma", "plain.vma", "empty"):
        done = pybackup("run", "--force", "disk.img", target, cwd=folder)
        assert (done.code, done.err) == (0, "")
    asked = pybackup("run", "disk.img", "plain.vma", cwd=folder)
    assert (asked.code, asked.err) == (5, "pybackup: plain.vma exists already; --force replaces it\n")


def test_a_block_device_is_no_archive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    if not devices:
        pytest.skip("there is no block device")
    done = pybackup("run", "--force", "disk.img", devices[0], cwd=folder)
    assert (done.code, "it is a block device: " + FORGOTTEN in done.err) == (5, True)


def test_a_restored_disk_replaces_no_archive(folder: Path) -> None:
    before = listing(folder)
    done = pybackup("restore", "--force", "ours.vma", "plain.vma", cwd=folder)
    assert (done.code, "is an archive, which no restored disk replaces" in done.err) == (5, True)
    assert listing(folder) == before
    (folder / "old").write_bytes(b"old")
    assert pybackup("restore", "--force", "ours.vma", "old", cwd=folder).code == 0


def test_no_new_files_among_devices(folder: Path) -> None:
    for arguments in (("restore", "ours.vma", "/dev/nosuch"), ("run", "disk.img", "/dev/nosuch.vma")):
        done = pybackup(*arguments, cwd=folder)
        assert (done.code, "there is no such device" in done.err) == (5, True)
        assert not os.path.exists(arguments[-1])


def test_folders_with_fields_in_their_names_are_made(folder: Path) -> None:
    asked = ("run", "--time", "1700000000", "disk.img", "{now:%Y}/{now:%m}/x/{name}.vma")
    assert pybackup(*asked, cwd=folder, env={"TZ": "UTC"}) == (0, b"", "")
    assert (folder / "2023" / "11" / "x" / "disk.vma").is_file()
    done = pybackup("run", "disk.img", "missing/{now:%Y}/x.vma", cwd=folder)
    assert (done.code, "folder missing/2" in done.err) == (5, True)
    assert not (folder / "missing").exists()
    assert pybackup("run", "missing.img", "{now:%Y}a/x.vma", cwd=folder).code == 3
    assert pybackup("run", "-", "--size", "1M", "{now:%Y}a/x.vma", cwd=folder, stdin=b"too short").code == 3
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["2023"]


def test_long_names_of_drives(folder: Path) -> None:
    (folder / "out").mkdir()
    for length in (246, 250):
        name = "n" * length
        (folder / f"{name}.img").write_bytes(DISK)
        assert pybackup("run", f"{name}.img", f"{name}.vma", cwd=folder) == (0, b"", "")
        assert pybackup("restore", f"{name}.vma", "out", cwd=folder) == (0, b"", "")
        assert (folder / "out" / f"{name}.raw").read_bytes() == DISK
    name = "n" * 253
    assert pybackup("run", f"{name}=disk.img", "x.vma", cwd=folder).code == 0
    done = pybackup("restore", "x.vma", "out", cwd=folder)
    assert (done.code, len(done.err.splitlines())) == (5, 1)
    assert "its name is longer than this filesystem allows" in done.err
    assert "--to NAME=TARGET" in done.err
    assert pybackup("restore", "x.vma", "--to", f"{name}={folder}/short", cwd=folder).code == 0


def test_configurations_get_their_names_with_the_disks_or_not_at_all(folder: Path) -> None:
    (folder / "a.conf").write_text("cores: 2\n")
    assert pybackup("run", "disk.img", "-c", "a.conf", "c.vma", cwd=folder).code == 0
    (folder / "out").mkdir()
    (folder / "out" / "a.conf").symlink_to("../kept.conf")
    (folder / "kept.conf").write_text("old")
    assert pybackup("restore", "--with-config", "c.vma", "out", cwd=folder).code == 5
    assert list(listing(folder / "out")) == ["a.conf"]
    assert pybackup("restore", "-f", "--with-config", "c.vma", "out", cwd=folder).code == 0
    assert (folder / "out" / "a.conf").is_symlink()
    assert (folder / "kept.conf").read_text() == "cores: 2\n"
    assert (folder / "out" / "disk.raw").read_bytes() == DISK


def test_one_target_for_two_drives_is_told_by_whatever_name(folder: Path) -> None:
    (folder / "e.img").write_bytes(DISK[::-1])
    assert pybackup("run", "disk.img", "e.img", "two.vma", cwd=folder).code == 0
    (folder / "place").mkdir()
    (folder / "also").symlink_to("place")
    os.link(folder / "e.img", folder / "hard.img")
    before = listing(folder)
    for one, other in (
        ("new", "./new"),
        ("new", str(folder / "new")),
        ("place/new", "also/new"),
        ("e.img", "hard.img"),
        ("-", "-"),
    ):
        done = pybackup("restore", "--force", "two.vma", f"disk={one}", f"e={other}", cwd=folder)
        assert (done.code, done.out) == (2, b"")
        assert f"the target {other} is named twice" in done.err
    assert listing(folder) == before


def test_what_is_whole_is_not_called_partial_when_another_fails(folder: Path) -> None:
    (folder / "e.img").write_bytes(DISK[::-1])
    assert pybackup("run", "disk.img", "e.img", "two.vma", cwd=folder).code == 0

    class Fails(SmallFile):
        async def commit(self) -> None:
            raise TargetError("no name for it")

    async def restore() -> str:
        disk, new = MemoryDevice(len(DISK)), NewFile(str(folder / "new"), replace=False)
        with open_archive(LocalPath(str(folder / "two.vma")), threads=1) as stream:
            targets = dict(zip(stream.header.drives, (ExistingDisk(disk), new), strict=True))
            first = Fails(str(folder / "config"), b"config", replace=False)
            job = RestoreJob(stream, targets, files=[first])
            # As where a folder took the name meanwhile, once everything is written.
            job._take_names = first.commit  # type: ignore[method-assign]
            with pytest.raises(TargetError) as failure:
                await job.run()
        assert await disk.pread(0, len(DISK)) == DISK
        return str(failure.value)

    told = asyncio.run(restore())
    assert told == f"no name for it; memory is complete; {folder}/new.partial holds all that was to be restored"
    assert (folder / "new.partial").read_bytes() == DISK[::-1]


def test_no_restored_disk_replaces_an_archive_that_is_damaged(folder: Path) -> None:
    plain, ours = (folder / "plain.vma").read_bytes(), (folder / "ours.vma").read_bytes()
    zstd = subprocess.run(["zstd", "-c"], input=plain, capture_output=True, check=True).stdout
    for name, content in (
        ("one", b"X" + plain[1:]),
        ("one", b"X" + ours[1:]),
        ("one", b"X" * 4096 + ours[4096:-1] + b"X"),
        ("one", plain[:30]),
        ("one.vma.zst", zstd[:20] + b"XXXX" + zstd[24:]),
        ("one.VMA", b"X" * 5000),
    ):
        (folder / name).write_bytes(content)
        done = pybackup("restore", "--force", "ours.vma", name, cwd=folder)
        assert (done.code, "which no restored disk replaces" in done.err) == (5, True), done.err
        assert (folder / name).read_bytes() == content
