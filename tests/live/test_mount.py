"""Archives mounted with FUSE, as their users look at them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import end, pybackup, start, wait_until

from pybackup.core.mount.opened import OpenedArchives
from pybackup.core.mount.tree import PlaceFolder
from pybackup.core.places.kinds import LocalPath

CLUSTER = 65536


@pytest.fixture
def mounted(need: Callable[..., None], tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts something and gives the folder; unmounted in the end, whatever comes."""
    need("fusermount3", "mountpoint")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"nothing can be mounted with FUSE here: /dev/fuse: {error.strerror}")
    folder = tmp_path / "m"
    folder.mkdir()
    processes: list[subprocess.Popen[bytes]] = []

    def mount(*arguments: str | Path, **options: object) -> Path:
        processes.append(start("mount", *arguments, folder, **options))
        wait_until(lambda: os.path.ismount(folder), "the mount", processes)
        return folder

    mount.processes = processes  # type: ignore[attr-defined]
    try:
        yield mount
    finally:
        subprocess.run(["fusermount3", "-uz", folder], check=False, capture_output=True)
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture
def nights(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A folder with n0.vma (full), n1.vma and n2.vma, and what drive a was."""
    folder, chance = tmp_path / "backups", random.Random(3)
    folder.mkdir()
    disk, contents = tmp_path / "a.img", []
    content = bytearray(chance.randbytes(30 * CLUSTER) + bytes(40 * CLUSTER) + b"end")
    (tmp_path / "vm.conf").write_bytes(b"cores: 2\n")
    for number in range(3):
        disk.write_bytes(content)
        contents.append(bytes(content))
        done = pybackup("run", "--incremental", "-c", tmp_path / "vm.conf", disk, folder / f"n{number}.vma")
        assert done.code == 0, done.err
        content[number * 700_000 : number * 700_000 + 5000] = chance.randbytes(5000)
    return folder, contents


def test_a_delta_is_a_whole_disk(
    mounted: Callable[..., Path], nights: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    _, contents = nights
    # By a relative name, for FUSE leaves the folder that it was started in.
    shown = mounted("backups/n2.vma", cwd=tmp_path)
    assert sorted(os.listdir(shown)) == ["a.raw", "vm.conf"]
    assert (shown / "vm.conf").read_bytes() == b"cores: 2\n"
    assert (shown / "a.raw").read_bytes() == contents[2]
    found = (shown / "a.raw").stat()
    assert found.st_size == len(contents[2])
    assert 30 * CLUSTER <= found.st_blocks * 512 < 40 * CLUSTER
    copy = tmp_path / "copy.img"
    subprocess.run(["cp", "--sparse=always", shown / "a.raw", copy], check=True)
    assert copy.read_bytes() == contents[2]
    with pytest.raises(OSError, match="Read-only"):
        (shown / "a.raw").open("r+b")
    with pytest.raises(OSError, match="No such file"):
        (shown / "nothing").open()


def test_a_folder_of_archives(mounted: Callable[..., Path], nights: tuple[Path, list[bytes]]) -> None:
    folder, contents = nights
    (folder / "broken.vma.zst").write_bytes((folder / "n2.vma").read_bytes()[:-30])
    shown = mounted(folder)
    assert sorted(os.listdir(shown)) == ["broken.vma.zst", "n0.vma", "n1.vma", "n2.vma"]
    for number, content in enumerate(contents):
        assert (shown / f"n{number}.vma" / "a.raw").read_bytes() == content
    with pytest.raises(OSError, match="Input/output"):
        os.listdir(shown / "broken.vma.zst")
    names = subprocess.run(["find", shown, "-name", "*.raw"], check=False, capture_output=True).stdout.decode().split()
    assert len(names) == 3
    assert subprocess.run(["ls", "-lR", shown / "n1.vma"], check=False, capture_output=True).returncode == 0


def test_links_are_not_followed(mounted: Callable[..., Path], nights: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    """One may lead into the mount: listing would wait for itself."""
    folder, _ = nights
    (folder / "loop.vma").symlink_to(tmp_path / "m" / "n0.vma" / "a.raw")
    (folder / "other.vma").symlink_to(folder / "n0.vma")
    assert sorted(os.listdir(mounted(folder))) == ["n0.vma", "n1.vma", "n2.vma"]


def test_it_is_told_why_something_cannot_be_read(
    mounted: Callable[..., Path], nights: tuple[Path, list[bytes]]
) -> None:
    folder, _ = nights
    (folder / "broken.vma.zst").write_bytes((folder / "n2.vma").read_bytes()[:-30])
    shown = mounted(folder)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            os.listdir(shown / "broken.vma.zst")
    with pytest.raises(OSError, match="No such file"):
        os.listdir(shown / "nothing")
    subprocess.run(["fusermount3", "-u", shown], check=True)
    told = mounted.processes[0].communicate()[1]  # type: ignore[attr-defined]
    lines = (told if isinstance(told, str) else told.decode()).splitlines()
    assert len(lines) == 1 and "broken.vma.zst" in lines[0]


def test_several_read_at_once(mounted: Callable[..., Path], nights: tuple[Path, list[bytes]]) -> None:
    folder, contents = nights
    shown = mounted(folder)

    def read(number: int) -> bool:
        chance, night = random.Random(number), number % 3
        with (shown / f"n{night}.vma" / "a.raw").open("rb") as file:
            for _ in range(40):
                at = chance.randrange(len(contents[night]))
                file.seek(at)
                if file.read(20_000) != contents[night][at : at + 20_000]:
                    return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(12)))


def test_damage_is_an_error_where_it_lies(mounted: Callable[..., Path], nights: tuple[Path, list[bytes]]) -> None:
    folder, contents = nights
    damaged = bytearray((folder / "n0.vma").read_bytes())
    damaged[300_000] ^= 1
    (folder / "n0.vma").write_bytes(damaged)
    shown = mounted(folder / "n1.vma")
    good = bad = 0
    with (shown / "a.raw").open("rb", buffering=0) as file:
        for at in range(0, len(contents[1]), CLUSTER):
            file.seek(at)
            try:
                assert file.read(4096) == contents[1][at : at + 4096]
                good += 1
            except OSError:
                bad += 1
    assert 0 < bad <= 8
    assert good > 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, None])
def test_it_ends(mounted: Callable[..., Path], nights: tuple[Path, list[bytes]], number: signal.Signals | None) -> None:
    shown = mounted(nights[0] / "n1.vma")
    (process,) = mounted.processes  # type: ignore[attr-defined]
    with (shown / "a.raw").open("rb") as reader:
        if number is None:
            busy = subprocess.run(["fusermount3", "-u", shown], check=False, capture_output=True)
            assert busy.returncode != 0
            assert b"busy" in busy.stderr
    if number is None:
        subprocess.run(["fusermount3", "-u", shown], check=True)
    assert reader.closed
    done = end(process, number)
    assert (done.code, done.err) == (0, "")
    assert not os.path.ismount(shown)


def test_in_the_background(mounted: Callable[..., Path], nights: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    folder, contents = nights
    shown = tmp_path / "m"
    done = pybackup("mount", "--background", folder / "n2.vma", shown)
    assert done == (0, b"", "")
    assert (shown / "a.raw").read_bytes() == contents[2]
    subprocess.run(["fusermount3", "-u", shown], check=True)
    failed = pybackup("mount", "--background", folder / "nothing.vma", shown)
    assert (failed.code, "nothing.vma" in failed.err) == (4, True)


def test_what_cannot_be_mounted(nights: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    folder, _ = nights
    (tmp_path / "m").mkdir()
    for arguments, code, sentence in (
        ([folder / "n0.vma", tmp_path / "gone"], 5, "there is no such folder"),
        ([folder / "n0.vma", folder], 5, "it is not empty"),
        ([tmp_path / "a.img", tmp_path / "m"], 4, "it is not an archive"),
        ([tmp_path / "gone.vma", tmp_path / "m"], 4, "No such file"),
    ):
        done = pybackup("mount", *arguments)
        assert (done.code, sentence in done.err) == (code, True), done.err


def test_without_the_package_it_says_how_to_get_it(nights: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    code = "import sys; sys.modules['mfusepy'] = None; from pybackup.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "mount", nights[0] / "n0.vma", tmp_path / "m"], check=False, capture_output=True
    )
    assert done.returncode == 2
    assert b"mounting needs the package mfusepy" in done.stderr
    assert b"[mount]" in done.stderr


def test_it_does_not_hide_what_it_shows_nor_wait_for_itself(nights: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to("m")
    for arguments in ([tmp_path / "m"], [tmp_path / "link"], ["--parents", tmp_path / "m", nights[0] / "n0.vma"]):
        done = pybackup("mount", *arguments, tmp_path / "m")
        assert (done.code, "would hide them" in done.err) == (5, True), done.err


def test_a_killed_mount_says_how_its_folder_comes_back(
    mounted: Callable[..., Path], nights: tuple[Path, list[bytes]]
) -> None:
    shown = mounted(nights[0])
    (process,) = mounted.processes  # type: ignore[attr-defined]
    process.kill()
    process.wait()
    done = pybackup("mount", nights[0], shown)
    assert (done.code, f"fusermount3 -u {shown}" in done.err) == (5, True), done.err
    subprocess.run(["fusermount3", "-u", shown], check=True)


def test_in_the_background_it_lets_go_of_what_it_was_given(
    mounted: Callable[..., Path], nights: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        done = pybackup("mount", "--background", nights[0], tmp_path / "m", pass_fds=[writing])
        os.close(writing)
        assert done == (0, b"", "")
        assert pipe.read() == b""


def test_an_archive_that_was_replaced_shows_what_it_holds_now(nights: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    folder, contents = nights
    place = LocalPath(str(folder / "n2.vma"))
    with contextlib.closing(OpenedArchives([])) as archives:
        shown = PlaceFolder(LocalPath(str(folder)), archives)
        kept = shown.child("n2.vma")
        assert kept.names() == ["a.raw", "vm.conf"]
        (tmp_path / "b.img").write_bytes(b"other")
        assert pybackup("run", "--force", tmp_path / "b.img", folder / "n2.vma").code == 0
        shown._looked = None
        assert shown.child("n2.vma").names() == ["b.raw"]
        assert shown.child("n2.vma").child("b.raw").attributes().size == 5
        # Who has looked at the old one is not given the new one's drives by the old one's names.
        archives.forget(place)
        assert kept.names() == ["b.raw"]
    assert len(contents) == 3
