from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import pybackup

from pybackup.cli.params import Named
from pybackup.core.endpoints.sources import SourceOptions, open_source
from pybackup.core.errors import Advice, BusyError
from pybackup.core.live.served_disks import open_served
from pybackup.core.places.kinds import LocalPath
from pybackup.core.system.device_in_use import DeviceUsers, device_in_use, device_number

NUMBERS = {"/dev/sda": "8:0", "/dev/sda1": "8:1", "/dev/sda2": "8:2", "/dev/sdb": "8:16"}


class Kernel:
    """A /proc and a /sys in a folder: sda with two partitions, sdb without."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        self.loops: dict[str, str] = {}
        (self.proc / "self").mkdir(parents=True)
        for name, number in NUMBERS.items():
            self._add(name.removeprefix("/dev/"), number)
        self.mounts("36 35 0:22 / /proc rw - proc proc rw")
        self.swaps()

    def _add(self, name: str, number: str) -> None:
        disk = self.sys / "block" / name[:3]
        folder = disk if len(name) == 3 else disk / name
        (folder / "holders").mkdir(parents=True)
        (folder / "dev").write_text(number + "\n")
        if folder != disk:
            (folder / "partition").write_text(name[3:] + "\n")
        link = self.sys / "dev" / "block" / number
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)

    def mounts(self, *lines: str) -> None:
        (self.proc / "self" / "mountinfo").write_text("".join(line + "\n" for line in lines))

    def swaps(self, *lines: str) -> None:
        (self.proc / "swaps").write_text("".join(line + "\n" for line in ("Filename Type Size Used Priority", *lines)))

    def hold(self, folder: str, holder: str) -> None:
        (self.sys / "block" / folder / "holders" / holder).touch()

    def loop(self, name: str, number: str, backing: str) -> None:
        folder = self.sys / "block" / name
        (folder / "loop").mkdir(parents=True)
        (folder / "loop" / "backing_file").write_text(backing + "\n")
        (folder / "dev").write_text(number + "\n")
        (self.sys / "dev" / "block" / number).symlink_to(folder)
        self.loops[f"/dev/{name}"] = number

    def of_file(self, path: Path) -> str | None:
        return self.users().of((path.stat().st_dev, path.stat().st_ino))

    def users(self) -> DeviceUsers:
        return DeviceUsers(self.proc, self.sys, {**NUMBERS, **self.loops}.get)

    def of(self, path: str) -> str | None:
        return self.users().of(NUMBERS[path])


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_nobody(kernel: Kernel) -> None:
    assert [kernel.of(path) for path in NUMBERS] == [None] * 4


def test_mounted_partition(kernel: Kernel) -> None:
    kernel.mounts(r"36 35 8:1 / /mnt/my\040disk rw,noatime shared:1 - ext4 /dev/sda1 rw")
    assert kernel.of("/dev/sda1") == "it is mounted on /mnt/my disk"
    assert kernel.of("/dev/sda") == "its partition sda1 is mounted on /mnt/my disk"
    assert kernel.of("/dev/sda2") is None
    assert kernel.of("/dev/sdb") is None


def test_mounted_whole_disk(kernel: Kernel) -> None:
    kernel.mounts("36 35 8:0 / /mnt rw - ext4 /dev/sda rw")
    assert kernel.of("/dev/sda1") == "its whole disk sda is mounted on /mnt"


def test_btrfs_shows_another_number(kernel: Kernel) -> None:
    kernel.mounts("36 35 0:40 /@ /home rw - btrfs /dev/sdb rw,subvol=/@")
    assert kernel.of("/dev/sdb") == "it is mounted on /home"


def test_swap(kernel: Kernel) -> None:
    kernel.swaps("/dev/sda2 partition 1000 0 -2", "/swapfile file 1000 0 -3")
    assert kernel.of("/dev/sda2") == "it is used as swap"
    assert kernel.of("/dev/sda") == "its partition sda2 is used as swap"


def test_holders(kernel: Kernel) -> None:
    kernel.hold("sda/sda2", "dm-0")
    kernel.hold("sdb", "md127")
    assert kernel.of("/dev/sda") == "its partition sda2 is part of dm-0"
    assert kernel.of("/dev/sdb") == "it is part of md127"


def test_what_lies_behind_a_loop_device(kernel: Kernel, tmp_path: Path) -> None:
    image, other = tmp_path / "disk.img", tmp_path / "other.img"
    image.touch()
    other.touch()
    kernel.loop("loop0", "7:0", str(image))
    kernel.loop("loop1", "7:1", "/dev/sdb")
    kernel.loop("loop2", "7:2", str(image))
    assert kernel.of("/dev/sdb") is None and kernel.of_file(image) is None
    kernel.mounts("36 35 7:0 / /mnt rw - ext4 /dev/loop0 rw", "37 35 7:1 / /srv rw - ext4 /dev/loop1 rw")
    assert kernel.of("/dev/sdb") == "it is behind loop1, of which is known: it is mounted on /srv"
    assert kernel.of_file(image) == "it is behind loop0, of which is known: it is mounted on /mnt"
    assert kernel.users().of("7:2") == f"it shows {image}, of which is known: {kernel.of_file(image)}", "the same file"
    assert kernel.of_file(other) is None
    kernel.swaps(f"{other} file 1000 0 -3")
    assert kernel.of_file(other) == "it is used as swap"


def test_what_lies_behind_many_layers(kernel: Kernel, tmp_path: Path) -> None:
    """Whatever is mounted at one end of a chain of loop devices, each link of it is in use; a sibling is not."""
    image = tmp_path / "disk.img"
    image.touch()
    kernel.loop("loop0", "7:0", str(image))
    kernel.loop("loop1", "7:1", "/dev/loop0")
    kernel.loop("loop2", "7:2", "/dev/loop1")
    kernel.loop("loop3", "7:3", "/dev/sda1")
    kernel.loop("loop4", "7:4", "/dev/sda2")
    kernel.loop("loop5", "7:5", "/dev/sda")

    def used() -> set[str]:
        users = kernel.users()
        found = {one for one in {**NUMBERS, **kernel.loops} if users.of(users._number_of(one) or one)}
        return found | ({"image"} if kernel.of_file(image) else set())

    chain = {"image", "/dev/loop0", "/dev/loop1", "/dev/loop2"}
    for mounted in ("7:0", "7:1", "7:2"):
        kernel.mounts(f"36 35 {mounted} / /mnt rw - ext4 /dev/x rw")
        assert used() == chain
    kernel.mounts()
    kernel.swaps(f"{image} file 1000 0 -3")
    assert used() == chain
    kernel.swaps()
    whole = {"/dev/sda", "/dev/loop5"}
    kernel.mounts("36 35 7:3 / /mnt rw - ext4 /dev/loop3 rw")
    assert used() == whole | {"/dev/sda1", "/dev/loop3"}
    expected = "its partition sda1 is behind loop3, of which is known: it is mounted on /mnt"
    assert kernel.of("/dev/sda") == expected
    kernel.mounts("36 35 8:2 / /mnt rw - ext4 /dev/sda2 rw")
    assert used() == whole | {"/dev/sda2", "/dev/loop4"}
    kernel.mounts("36 35 7:5 / /mnt rw - ext4 /dev/loop5 rw")
    assert used() == whole | {"/dev/sda1", "/dev/sda2", "/dev/loop3", "/dev/loop4"}
    assert kernel.of("/dev/sda1") == "its whole disk sda is behind loop5, of which is known: it is mounted on /mnt"
    kernel.mounts()
    assert used() == set()


def test_a_container_that_shows_nothing(tmp_path: Path) -> None:
    assert DeviceUsers(tmp_path, tmp_path, NUMBERS.get).of("8:0") is None


def test_a_file_is_no_block_device(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.touch()
    assert device_in_use(path) is None
    assert device_number(str(path)) is None
    with pytest.raises(FileNotFoundError):
        device_in_use(tmp_path / "none")


@pytest.fixture
def loop(tmp_path: Path, need: Callable[..., None]) -> Iterator[Path]:
    """A real block device of 8 MiB with a filesystem, where this machine lets us have one."""
    need("losetup", "mkfs.ext4", "mount", "umount")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 << 20))
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    attached = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if attached.returncode:
        pytest.skip(f"no loop device: {attached.stderr.strip()}")
    yield Path(attached.stdout.strip())
    subprocess.run(["losetup", "--detach", attached.stdout.strip()], check=True)


def test_a_real_device_that_is_mounted(loop: Path, tmp_path: Path) -> None:
    assert device_in_use(loop) is None
    target = tmp_path / "mnt"
    target.mkdir()
    mounted = subprocess.run(["mount", str(loop), str(target)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        assert device_in_use(loop) == f"it is mounted on {target}"
        told = f"{loop} is in use (it is mounted on {target}): the backup is of no one instant if it is written to"
        assert warnings_of(loop) == [f"{told} meanwhile"]
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert device_in_use(loop) is None
    assert warnings_of(loop) == []


def test_no_disk_is_restored_over_what_a_loop_device_shows(loop: Path, tmp_path: Path) -> None:
    (tmp_path / "new.img").write_bytes(b"new" * 10_000)
    assert pybackup("run", "new.img", "new.vma", cwd=tmp_path).code == 0
    image = (tmp_path / "disk.img").read_bytes()
    done = pybackup("restore", "--force", "new.vma", "disk.img", cwd=tmp_path)
    told = f"pybackup: disk.img is in use: it is behind {loop}; `losetup -d {loop}` lets go of it\n"
    assert (done.code, done.err) == (5, told)
    assert (tmp_path / "disk.img").read_bytes() == image


def warnings_of(disk: Path) -> list[str]:
    """What a backup of this disk warns of."""

    async def main() -> list[str]:
        source = await open_source(LocalPath(str(disk)), SourceOptions())
        await source.close()
        return list(source.warnings)

    return asyncio.run(main())


@pytest.mark.parametrize("what", ["device", "file"])
def test_an_image_whose_data_are_mounted_is_not_served_for_writing(
    loop: Path, tmp_path: Path, need: Callable[..., None], what: str
) -> None:
    need("qemu-img", "qemu-nbd")
    image, target = str(tmp_path / "image.qcow2"), tmp_path / "mnt"
    target.mkdir()
    options = f"data_file={loop if what == 'device' else tmp_path / 'disk.img'},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, "8M"], check=True)
    assert served(image, image_format="qcow2") is None
    subprocess.run(["mkfs.ext4", "-q", "-F", str(loop)], check=True)
    mounted = subprocess.run(["mount", str(loop), str(target)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        with pytest.raises(BusyError, match=f"is in use: .*is mounted on {target}"):
            served(image, image_format="qcow2")
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert served(image, image_format="qcow2") is None


@pytest.mark.parametrize("what", ["device", "file"])
def test_what_is_mounted_is_not_served_for_writing(loop: Path, tmp_path: Path, what: str) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    disk = str(loop if what == "device" else tmp_path / "disk.img")
    assert served(disk) is None
    mounted = subprocess.run(["mount", str(loop), str(target)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        with pytest.raises(BusyError, match=f"is in use: .*is mounted on {target}") as refused:
            served(disk)
        assert refused.value.advice is Advice.SERVE_READ_ONLY
        told = served(disk, read_only=True)
        assert told is not None and told.endswith("and is served all the same")
        assert served(disk, force_share=True) == told
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert served(disk) is None


def test_a_file_that_is_mounted_is_not_replaced_by_a_restored_disk(loop: Path, tmp_path: Path) -> None:
    """What lies behind the loop device would go on without a name, and with it all that is written from now on."""
    image, other, target = tmp_path / "disk.img", tmp_path / "other.img", tmp_path / "mnt"
    other.write_bytes(b"other")
    target.mkdir()
    assert pybackup("run", other, tmp_path / "other.vma").code == 0
    mounted = subprocess.run(["mount", str(loop), str(target)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        done = pybackup("restore", "--force", tmp_path / "other.vma", image)
        assert (
            done.code == 5 and f"{image} is in use: it is behind {loop.name}, of which is known: it is mou" in done.err
        )
        assert image.stat().st_size == 8 << 20
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_what_is_served_cannot_be_mounted(loop: Path, tmp_path: Path) -> None:
    async def main() -> None:
        sources = [Named(None, LocalPath(str(loop)))]
        disks = await open_served(sources, image_format="raw", read_only=False, force_share=False)
        command = ["mount", str(loop), str(tmp_path)]
        tried = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        # EBUSY, in the words of one mount(8) or another.
        assert tried.returncode == 32
        assert re.search(r"already mounted or mount point busy|Can't open blockdev", tried.stderr)
        for disk in disks.values():
            await disk.close()

    asyncio.run(main())
    assert device_in_use(loop) is None, "the claim is given back"


def served(disk: str, *, image_format: str = "raw", read_only: bool = False, force_share: bool = False) -> str | None:
    """What a server that offers this disk warns of."""

    async def main() -> str | None:
        sources = [Named(None, LocalPath(disk))]
        disks = await open_served(sources, image_format=image_format, read_only=read_only, force_share=force_share)
        (one,) = disks.values()
        await one.close()
        return one.warning

    return asyncio.run(main())


def test_a_file_behind_a_device_that_is_served_and_a_device_over_a_file_that_is(loop: Path, tmp_path: Path) -> None:
    image = str(tmp_path / "disk.img")

    async def main(first: str, second: str) -> None:
        disks = await open_served(
            [Named(None, LocalPath(first))], image_format="raw", read_only=False, force_share=False
        )
        try:
            with pytest.raises(BusyError, match=r"is in use: it .* claimed, or locked to be written to"):
                await open_served(
                    [Named(None, LocalPath(second))], image_format="raw", read_only=False, force_share=False
                )
        finally:
            for disk in disks.values():
                await disk.close()

    asyncio.run(main(str(loop), image))
    asyncio.run(main(image, str(loop)))
    assert served(image) is None and served(str(loop)) is None


def test_a_real_device_that_is_claimed(loop: Path) -> None:
    fd = os.open(loop, os.O_RDWR | os.O_EXCL)
    try:
        assert "exclusive open" in (device_in_use(loop) or "")
    finally:
        os.close(fd)
