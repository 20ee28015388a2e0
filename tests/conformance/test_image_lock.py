"""Our image lock against QEMU's programs, both ways."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pybackup.core.errors import BusyError
from pybackup.core.system.image_lock import ImageLock


@pytest.fixture
def image(tmp_path: Path, need: Callable[..., None]) -> Path:
    need("qemu-io", "qemu-nbd", "qemu-img")
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def qemu_nbd(path: Path, *options: str) -> Iterator[None]:
    """A server that has the image open; --fork returns when it listens."""
    pid_file = path.with_suffix(".pid")
    command = ["qemu-nbd", "--fork", "--persistent", f"--pid-file={pid_file}", "--format=raw"]
    subprocess.run([*command, f"--socket={path.with_suffix('.sock')}", *options, str(path)], check=True)
    pid = int(pid_file.read_text())
    fd = os.pidfd_open(pid)
    try:
        yield
    finally:
        # More than once: qemu-nbd forgets a signal that comes just before its main loop.
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        while not select.select([fd], [], [], 0.2)[0]:
            signal.pidfd_send_signal(fd, signal.SIGTERM)
        os.close(fd)


def quiet(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_while_we_read_qemu_may_read_and_not_write(image: Path) -> None:
    with opened(image) as fd, ImageLock.for_reading(fd, "disk.img") as lock:
        assert lock.note is None
        assert quiet("qemu-io", "-r", "-f", "raw", image, "-c", "read 0 512")[0] == 0
        assert quiet("qemu-img", "convert", "-f", "raw", "-O", "raw", image, image.with_name("copy"))[0] == 0
        code, output = quiet("qemu-io", "-f", "raw", image, "-c", "write 0 512")
        assert code != 0
        assert 'Failed to get "write" lock' in output
        code, output = quiet("qemu-nbd", "--format=raw", f"--socket={image}.sock", image)
        assert code != 0
        assert 'Failed to get "write" lock' in output
    assert quiet("qemu-io", "-f", "raw", image, "-c", "write 0 512")[0] == 0


def test_while_we_write_qemu_neither_writes_nor_reads_what_must_not_change(image: Path) -> None:
    disk = image.with_name("disk.qcow2")
    assert quiet("qemu-img", "create", "-f", "qcow2", disk, "1M")[0] == 0
    with opened(disk) as fd, ImageLock.for_writing(fd, "disk.qcow2"):
        assert "lock" in quiet("qemu-io", "-f", "qcow2", disk, "-c", "write 0 512")[1]
        assert 'Failed to get shared "write" lock' in quiet("qemu-img", "info", disk)[1]
        assert quiet("qemu-img", "info", "-U", disk)[0] == 0
    assert quiet("qemu-img", "info", disk)[0] == 0


def test_while_qemu_writes_we_neither_read_nor_write(image: Path) -> None:
    with opened(image) as fd:
        with qemu_nbd(image):
            for take in (ImageLock.for_reading, ImageLock.for_writing):
                with pytest.raises(BusyError, match=r"disk.img is in use by another program \(QEMU image lock\)"):
                    take(fd, "disk.img")
        ImageLock.for_writing(fd, "disk.img").release()


def test_while_qemu_reads_we_may_read(image: Path) -> None:
    with opened(image) as fd, qemu_nbd(image, "--read-only"), ImageLock.for_reading(fd, "disk.img") as lock:
        assert lock.note is None


def test_a_refused_lock_leaves_nothing_behind(image: Path) -> None:
    with opened(image) as fd, qemu_nbd(image), pytest.raises(BusyError):
        ImageLock.for_writing(fd, "disk.img")
    with opened(image) as fd:
        with qemu_nbd(image), pytest.raises(BusyError):
            ImageLock.for_reading(fd, "disk.img")
        assert quiet("qemu-io", "-f", "raw", image, "-c", "write 0 512")[0] == 0
