"""Debian's qemu-ga where it can freeze nothing of this machine.

It runs in a mount namespace whose root is a tmpfs with nothing in it but qemu-ga, what it is linked to, /proc, and a
small ext4 on a loop device of its own: what it finds in /proc/self/mountinfo is all that it can freeze. Before anything
is frozen that list is looked at from outside, and a test that does not find just this fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live.processes import until

FITHAW = 0xC0045878
"""_IOWR('X', 120, int) of linux/fs.h."""
MNT_DETACH = 2
SIZE = 32 << 20
APART = ("unshare", "--mount", "--propagation", "private")


class IsolatedAgent:
    """Fixed: the process, the image of its one filesystem, and the path of its socket as it is seen from here."""

    def __init__(self, process: subprocess.Popen[bytes], image: Path) -> None:
        self.process, self.image = process, image
        self.root = Path(f"/proc/{process.pid}/root")
        self.path, self.data = str(self.root / "agent.sock"), self.root / "data"

    def check_isolated(self, device: str) -> None:
        """Nothing but its own can be frozen by it, or it must not be asked."""
        mounts = [line.split() for line in Path(f"/proc/{self.process.pid}/mountinfo").read_text().splitlines()]
        found = sorted((line[4], *line[line.index("-") + 1 :][:2]) for line in mounts)
        assert found == [("/", "tmpfs", "none"), ("/data", "ext4", device), ("/proc", "proc", "none")]
        assert os.stat(self.data).st_dev == os.stat(device).st_rdev

    def thaw_by_hand(self) -> bool:
        """Whether it was frozen."""
        fd = os.open(self.data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, FITHAW, 0)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


@contextlib.contextmanager
def isolated_agent(folder: Path, need: Callable[..., None], image: Path) -> Iterator[IsolatedAgent]:
    """One that listens, and has its filesystem on this file.

    The test is skipped, and says why, where no such place can be made for it.
    """
    need("qemu-ga", "mkfs.ext4", "dumpe2fs", "losetup", "unshare", "ldd")
    if os.geteuid() != 0:
        pytest.skip("mounting a filesystem for qemu-ga takes root")
    apart = subprocess.run([*APART, "true"], capture_output=True, text=True)
    if apart.returncode:
        pytest.skip(f"no mount namespace for qemu-ga: {apart.stderr.strip()}")
    world = folder / "world"
    world.mkdir()
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    loop = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
    if loop.returncode:
        pytest.skip(f"no loop device for qemu-ga's filesystem: {loop.stderr.strip()}")
    device = loop.stdout.strip()
    try:
        with _running(image, world, device) as agent:
            yield agent
    finally:
        until(lambda: subprocess.run(["losetup", "--detach", device], capture_output=True).returncode == 0)


@contextlib.contextmanager
def _running(image: Path, world: Path, device: str) -> Iterator[IsolatedAgent]:
    command = [sys.executable, __file__, str(world), device]
    process = subprocess.Popen([*APART, *command], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    agent = IsolatedAgent(process, image)
    try:
        until(lambda: process.poll() is not None or Path(agent.path).exists())
        assert process.poll() is None, process.communicate()[1].decode()
        agent.check_isolated(device)
        yield agent
        assert not agent.thaw_by_hand(), "its filesystem was left frozen"
    finally:
        if process.poll() is None:
            while agent.thaw_by_hand():
                pass
            process.kill()
        process.communicate()


# -- the process that becomes qemu-ga --


def _become_agent(world: str, device: str) -> None:
    """Move into the new root, let go of the old one, and become qemu-ga."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

    def mount(source: str, target: str, kind: str) -> None:
        check(libc.mount(source.encode(), target.encode(), kind.encode(), 0, None), target)

    mount("none", world, "tmpfs")
    _copy_agent(world)
    for name in ("proc", "data", "old"):
        os.mkdir(f"{world}/{name}")
    mount(device, f"{world}/data", "ext4")
    mount("none", f"{world}/proc", "proc")
    os.chdir(world)
    if libc.pivot_root(b".", b"old") == 0:
        check(libc.umount2(b"/old", MNT_DETACH), "umount")
    else:
        # We are in a chroot that is no mount point; its mounts are as invisible from another one.
        os.chroot(".")
    os.chdir("/")
    where = ["--method=unix-listen", "--path=/agent.sock", "--statedir=/", "--pidfile=/agent.pid"]
    os.execv("/qemu-ga", ["qemu-ga", *where])


def _copy_agent(world: str) -> None:
    program = shutil.which("qemu-ga")
    assert program is not None
    shutil.copy(program, f"{world}/qemu-ga")
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for word in linked.split():
        if word.startswith("/"):
            os.makedirs(world + os.path.dirname(word), exist_ok=True)
            shutil.copy(word, world + word)


if __name__ == "__main__":
    _become_agent(*sys.argv[1:])
