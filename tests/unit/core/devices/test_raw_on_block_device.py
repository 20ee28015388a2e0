"""The device contract on a real block device: a loop device, where this machine lets us have one."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from device_contract import DeviceContract

from pybackup.core.device import BlockDevice
from pybackup.core.devices.raw import RawDevice
from pybackup.core.system import fallocate


class TestBlockDeviceContract(DeviceContract):
    size_unit = 512

    @pytest.fixture(autouse=True)
    def _loops(self, tmp_path: Path, need: Callable[..., None]) -> Iterator[None]:
        need("losetup")
        self.image = tmp_path / "disk.img"
        self.attached: list[str] = []
        yield
        for loop in self.attached:
            subprocess.run(["losetup", "--detach", loop], check=True)

    def attach(self, contents: bytes, *options: str) -> str:
        self.image.write_bytes(contents)
        command = ["losetup", "--find", "--show", *options, str(self.image)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        self.attached.append(done.stdout.strip())
        return self.attached[-1]

    async def make(self, contents: bytes) -> BlockDevice:
        return RawDevice.open(self.attach(contents), writable=True)

    async def make_read_only(self, contents: bytes) -> BlockDevice:
        return RawDevice.open(self.attach(contents, "--read-only"))

    def test_it_is_all_data_and_has_no_fingerprint(self) -> None:
        async def test() -> None:
            device = RawDevice.open(self.attach(bytes(1 << 20)))
            assert device.is_block_device
            assert device.size == 1 << 20
            assert device.fingerprint() is None
            assert [(extent.offset, extent.length, extent.zero) for extent in await device.extents(5, 1000)] == [
                (5, 1000, False)
            ]
            await device.close()

        self.run(test())

    def test_zeroes_reach_the_disk_below(self) -> None:
        async def test() -> None:
            device = RawDevice.open(self.attach(b"x" * (1 << 20)), writable=True)
            await device.write_zeroes(100, (1 << 20) - 200, fast_only=True)
            await device.flush()
            await device.close()
            assert self.image.read_bytes() == b"x" * 100 + bytes((1 << 20) - 200) + b"x" * 100
            assert self.image.stat().st_blocks * 512 <= 16384

        self.run(test())

    def test_without_zeroing_in_the_device_fast_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unsupported(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(fallocate, "_fallocate", unsupported)

        async def test() -> None:
            device = RawDevice.open(self.attach(b"x" * 8192), writable=True)
            with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
                await device.write_zeroes(100, 8000, fast_only=True)
            assert await device.pread(0, 8192) == b"x" * 8192
            await device.write_zeroes(100, 8000)
            assert await device.pread(0, 8192) == b"x" * 100 + bytes(8000) + b"x" * 92
            await device.close()

        self.run(test())
