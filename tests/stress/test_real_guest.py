"""Debian's kernel boots from every view of a backup, writes, and shuts down.

STRESS_KERNEL names a folder in which a package linux-image-*-cloud-amd64 was unpacked (`apt-get download`,
`dpkg-deb -x`); without it nothing is tried. Needs busybox-static and cpio.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import end, pybackup, start, wait_until

MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk")
INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for m in {" ".join(MODULES)}; do /bin/busybox insmod /$m.ko; done
/bin/busybox mount -t ext4 /dev/vda /mnt && echo "BOOTED $(/bin/busybox cat /mnt/marker)"
echo x > /mnt/written && /bin/busybox umount /mnt && echo WRITTEN
/bin/busybox poweroff -f
"""


@pytest.fixture
def guest(need: Callable[..., None], tmp_path: Path) -> Callable[[str], str]:
    """Boots from a disk, and gives what the guest has said."""
    need("qemu-system-x86_64", "busybox", "cpio", "mkfs.ext4", "e2fsck")
    unpacked = os.environ.get("STRESS_KERNEL")
    if not unpacked:
        pytest.skip("STRESS_KERNEL names no kernel")
    (kernel,) = Path(unpacked).glob("boot/vmlinuz-*")
    root = tmp_path / "initramfs"
    for folder in ("bin", "dev", "mnt"):
        (root / folder).mkdir(parents=True)
    for name in MODULES:
        (module,) = Path(unpacked).glob(f"lib/modules/*/kernel/**/{name}.ko")
        (root / module.name).write_bytes(module.read_bytes())
    for name, content in (("bin/busybox", Path("/bin/busybox").read_bytes()), ("init", INIT.encode())):
        (root / name).write_bytes(content)
        (root / name).chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in root.rglob("*")).encode()
    packed = subprocess.run(["cpio", "-o", "-H", "newc"], cwd=root, input=names, capture_output=True, check=True)
    initramfs = tmp_path / "initramfs.cpio"
    initramfs.write_bytes(packed.stdout)

    def boot(disk: str) -> str:
        command = ["qemu-system-x86_64", "-machine", "accel=tcg", "-cpu", "max", "-m", "256M", "-nodefaults"]
        command += ["-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot"]
        command += ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", "console=ttyS0 quiet panic=-1"]
        command += ["-drive", f"if=virtio,format=raw,file={disk}"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=120, text=True
        )
        return done.stdout

    return boot


def test_it_boots_from_every_view(guest: Callable[[str], str], tmp_path: Path) -> None:
    disk, content, live = tmp_path / "root.img", tmp_path / "content", tmp_path / "live.raw"
    content.mkdir()
    (content / "marker").write_text("from the backup")
    disk.touch()
    os.truncate(disk, 32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-d", content, disk], check=True)
    archive = tmp_path / "vm.vma"
    assert pybackup("run", f"root={disk}", archive).code == 0
    for number, words in enumerate((["serve", "--writable", archive], ["restore", "--live", archive, live])):
        socket = tmp_path / f"{number}.sock"
        serving = start(*words, "--socket", socket, "--control", tmp_path / f"{number}.control")
        wait_until(socket.exists, "the server", [serving])
        said = guest(f"nbd+unix:///root?socket={socket}")
        assert "BOOTED from the backup" in said and "WRITTEN" in said
        assert end(serving, signal.SIGTERM).code in (0, 143)
    assert subprocess.run(["e2fsck", "-fn", live], check=False, capture_output=True).returncode == 0
    assert "WRITTEN" in guest(str(disk))
