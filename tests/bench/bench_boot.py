"""A guest for `make bench`, without KVM: Debian's kernel, an initramfs made here, a disk that it mounts and reads of.

STRESS_KERNEL names a folder in which a package linux-image-*-cloud-amd64 was unpacked, as for `make stress`. Needs
qemu-system-x86_64, busybox-static and cpio.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk")
INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for m in {" ".join(MODULES)}; do /bin/busybox insmod /$m.ko; done
/bin/busybox mount -t ext4 /dev/vda /mnt || /bin/busybox poweroff -f
/bin/busybox find /mnt -type f | /bin/busybox head -n 2000 | /bin/busybox xargs /bin/busybox cat > /dev/null
echo BOOTED
/bin/busybox poweroff -f
"""


def guest(folder: Path) -> Callable[[str], float] | None:
    """What boots from a disk, as QEMU's -drive names it, and gives the seconds it took; None where it cannot be."""
    unpacked = os.environ.get("STRESS_KERNEL")
    if not unpacked or any(shutil.which(name) is None for name in ("qemu-system-x86_64", "busybox", "cpio")):
        return None
    (kernel,) = Path(unpacked).glob("boot/vmlinuz-*")
    initramfs = _pack(Path(unpacked), folder / "initramfs")
    machine = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "256M", "-nodefaults"]
    machine += ["-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(kernel)]
    machine += ["-initrd", str(initramfs), "-append", "console=ttyS0 quiet panic=-1"]

    def boot(disk: str) -> float:
        started = time.perf_counter()
        command = [*machine, "-drive", f"if=virtio,format=raw,{disk}"]
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=300, text=True
        )
        if "BOOTED" not in said.stdout:
            raise SystemExit(f"the guest did not boot from {disk}")
        return time.perf_counter() - started

    return boot


def _pack(unpacked: Path, root: Path) -> Path:
    """An initramfs with busybox, the modules for a disk, and INIT."""
    for name in ("bin", "dev", "mnt"):
        (root / name).mkdir(parents=True)
    for name in MODULES:
        (module,) = unpacked.glob(f"lib/modules/*/kernel/**/{name}.ko")
        (root / module.name).write_bytes(module.read_bytes())
    for name, content in (("bin/busybox", Path("/bin/busybox").read_bytes()), ("init", INIT.encode())):
        (root / name).write_bytes(content)
        (root / name).chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in root.rglob("*")).encode()
    packed = subprocess.run(["cpio", "-o", "-H", "newc"], cwd=root, input=names, capture_output=True, check=True)
    initramfs = root.with_suffix(".cpio")
    initramfs.write_bytes(packed.stdout)
    return initramfs
