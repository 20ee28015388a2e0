"""Other people's NBD clients are the judge of our server."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from live.processes import served as live_server
from live.processes import until

from pybackup.core.device import BlockDevice
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.devices.raw import RawDevice
from pybackup.core.nbd.server import NbdServer

SIZE = (24 << 20) + 4096
Need = Callable[..., None]


@contextmanager
def served(folder: Path, exports: Mapping[str, BlockDevice]) -> Iterator[str]:
    """A server in a thread of its own; its socket."""
    path = str(folder / "nbd.sock")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = NbdServer(exports)
    try:
        asyncio.run_coroutine_threadsafe(server.start_unix(path), loop).result(10)
        yield path
    finally:
        asyncio.run_coroutine_threadsafe(_close(server, exports), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(server: NbdServer, exports: Mapping[str, BlockDevice]) -> None:
    await server.close()
    for device in exports.values():
        await device.close()


def call(*command: str, timeout: float = 60) -> str:
    """Run a program that must succeed; what it says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def sparse_image(path: Path, size: int = SIZE) -> bytes:
    """A file with data, holes, and zeros that are written."""
    source = random.Random(5)
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size - 200_000, 3 << 20):
            file.seek(offset + source.randrange(0, 100_000, 512))
            file.write(source.randbytes(90_000) + bytes(20_000))
    return path.read_bytes()


@pytest.fixture(params=["raw", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], BlockDevice]:
    """Makes a writable disk with these contents."""

    def make(contents: bytes) -> BlockDevice:
        if request.param == "memory":
            return MemoryDevice(contents)
        (tmp_path / "disk.img").write_bytes(contents)
        return RawDevice.open(tmp_path / "disk.img", writable=True)

    return make


def read_back(path: str, folder: Path) -> bytes:
    """The contents, by way of nbdcopy."""
    target = folder / "read-back.img"
    call("nbdcopy", f"nbd+unix:///?socket={path}", str(target))
    return target.read_bytes()


def test_nbdinfo_sees_what_there_is(need: Need, tmp_path: Path) -> None:
    need("nbdinfo")
    sparse_image(tmp_path / "a.img")
    exports: dict[str, BlockDevice] = {
        "a": RawDevice.open(tmp_path / "a.img", writable=True),
        "b": MemoryDevice(777, read_only=True),
    }
    with served(tmp_path, exports) as path:
        told = json.loads(call("nbdinfo", "--json", "--list", f"nbd+unix:///?socket={path}"))
        first, second = sorted(told["exports"], key=lambda export: str(export["export-name"]))
        assert (first["export-name"], first["export-size"], first["is_read_only"]) == ("a", SIZE, False)
        assert (second["export-name"], second["export-size"], second["is_read_only"]) == ("b", 777, True)
        abilities = ("can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim")
        assert all(first[ability] for ability in (*abilities, "can_zero"))
        assert not first["is_rotational"]
        assert first["contexts"] == ["base:allocation"]
        assert (first["block_size_minimum"], first["block_size_maximum"]) == (1, 32 << 20)


def test_nbdinfo_maps_the_holes(need: Need, tmp_path: Path) -> None:
    need("nbdinfo", "qemu-img")
    sparse_image(tmp_path / "a.img")
    with served(tmp_path, {"a": RawDevice.open(tmp_path / "a.img")}) as path:
        ours = json.loads(call("nbdinfo", "--json", "--map", f"nbd+unix:///a?socket={path}"))
    theirs = json.loads(call("qemu-img", "map", "--output=json", "-f", "raw", str(tmp_path / "a.img")))
    assert len(ours) > 10
    assert [(extent["offset"], extent["length"], extent["type"] == 3) for extent in ours] == [
        (extent["start"], extent["length"], extent["zero"]) for extent in theirs
    ]


def test_nbdcopy_both_ways(need: Need, tmp_path: Path, disk: Callable[[bytes], BlockDevice]) -> None:
    need("nbdcopy")
    contents = sparse_image(tmp_path / "source.img")
    with served(tmp_path, {"": disk(b"\xff" * SIZE)}) as path:
        call("nbdcopy", "--flush", str(tmp_path / "source.img"), f"nbd+unix:///?socket={path}")
        assert read_back(path, tmp_path) == contents
        call("nbdcopy", "--synchronous", f"nbd+unix:///?socket={path}", str(tmp_path / "plain.img"))
        assert (tmp_path / "plain.img").read_bytes() == contents


def test_qemu_img_converts_both_ways(need: Need, tmp_path: Path, disk: Callable[[bytes], BlockDevice]) -> None:
    need("qemu-img", "nbdcopy")
    contents = sparse_image(tmp_path / "source.img")
    with served(tmp_path, {"": disk(b"\xff" * SIZE)}) as path:
        uri = f"nbd+unix:///?socket={path}"
        raw = ("-f", "raw", "-O", "raw")
        call("qemu-img", "convert", "-n", "-m", "16", "-W", *raw, str(tmp_path / "source.img"), uri)
        call("qemu-img", "compare", "-f", "raw", "-F", "raw", str(tmp_path / "source.img"), uri)
        assert read_back(path, tmp_path) == contents
        call("qemu-img", "convert", *raw, uri, str(tmp_path / "back.img"))
        assert (tmp_path / "back.img").read_bytes() == contents


def test_qemu_io_patterns(need: Need, tmp_path: Path, disk: Callable[[bytes], BlockDevice]) -> None:
    need("qemu-io", "nbdcopy")
    model = bytearray(b"\xff" * SIZE)
    commands: list[str] = []
    source = random.Random(7)
    for number in range(1, 60):
        offset = source.randrange(SIZE - (1 << 20))
        length = source.choice([1, 511, 512, 4096, 5000, 65536, 65537, 1 << 20])
        kind = source.choice([f"write -P {number}", f"write -f -P {number}", "write -z", "write -z -u", "write -z -n"])
        model[offset : offset + length] = bytes([0 if "-z" in kind else number]) * length
        expected = model[offset]
        commands += ["-c", f"{kind} {offset} {length}", "-c", f"read -P {expected} {offset} {length}"]
        if number % 10 == 0:
            commands += ["-c", "flush"]
    with served(tmp_path, {"": disk(b"\xff" * SIZE)}) as path:
        said = call("qemu-io", "-f", "raw", *commands, f"nbd+unix:///?socket={path}")
        assert "verification failed" not in said
        assert read_back(path, tmp_path) == model


def test_qemu_io_discards_and_then_reads_something(need: Need, tmp_path: Path) -> None:
    need("qemu-io")
    image = tmp_path / "disk.img"
    image.write_bytes(b"\xff" * SIZE)
    with served(tmp_path, {"": RawDevice.open(image, writable=True)}) as path:
        call(
            "qemu-io",
            "-f",
            "raw",
            "-c",
            "discard 0 8M",
            "-c",
            "read 0 8M",
            "-c",
            "flush",
            f"nbd+unix:///?socket={path}",
        )
    assert image.stat().st_size == SIZE
    assert image.read_bytes()[8 << 20 :] == b"\xff" * (SIZE - (8 << 20))


def test_a_read_only_disk_refuses_qemu(need: Need, tmp_path: Path) -> None:
    need("qemu-io")
    with served(tmp_path, {"": MemoryDevice(SIZE, read_only=True)}) as path:
        command = ["qemu-io", "-f", "raw", "-c", "write 0 512", f"nbd+unix:///?socket={path}"]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert refused.returncode != 0
        assert "Permission denied" in refused.stderr
        call("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", f"nbd+unix:///?socket={path}")


@pytest.mark.parametrize(
    ("pattern", "block", "depth"), [("randwrite", "4k", 16), ("randwrite", "512-96k", 8), ("write", "1m", 4)]
)
def test_fio_verifies(
    need: Need, tmp_path: Path, disk: Callable[[bytes], BlockDevice], pattern: str, block: str, depth: int
) -> None:
    need("fio")
    if "nbd" not in call("fio", "--enghelp").split():
        pytest.skip("not installed: fio with its nbd engine")
    blocks = f"--bsrange={block}" if "-" in block else f"--bs={block}"
    with served(tmp_path, {"": disk(bytes(SIZE))}) as path:
        options = [
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--size=16m",
            f"--iodepth={depth}",
            "--randseed=3",
        ]
        uri = f"--uri=nbd+unix:///?socket={path}"
        call("fio", "--name=verify", "--ioengine=nbd", uri, f"--rw={pattern}", blocks, *options)


def test_several_connections_work_on_one_disk(need: Need, tmp_path: Path) -> None:
    need("nbdcopy")
    contents = sparse_image(tmp_path / "source.img")
    (tmp_path / "disk.img").write_bytes(b"\xff" * SIZE)
    with served(tmp_path, {"": RawDevice.open(tmp_path / "disk.img", writable=True)}) as path:
        options = ("--connections=4", "--threads=4", "--requests=32", "--request-size=65536", "--flush")
        call("nbdcopy", *options, str(tmp_path / "source.img"), f"nbd+unix:///?socket={path}")
    assert (tmp_path / "disk.img").read_bytes() == contents


def test_nbdfuse_mounts_an_export(need: Need, tmp_path: Path) -> None:
    """A real `pybackup serve`, written to and read from as a file, by nbdfuse and the kernel."""
    need("nbdfuse", "fusermount3")
    _need_fuse()
    contents = bytearray(sparse_image(tmp_path / "disk.img"))
    (mount := tmp_path / "mount").mkdir()
    with live_server(tmp_path, str(tmp_path / "disk.img")) as server, mounted(mount, server.lines[0]):
        with (mount / "nbd").open("r+b", buffering=0) as file:
            assert os.fstat(file.fileno()).st_size == SIZE
            assert file.read(1 << 20) == contents[: 1 << 20]
            source = random.Random(3)
            for _ in range(40):
                offset, data = source.randrange(SIZE - 70_000), source.randbytes(source.randrange(1, 70_000))
                file.seek(offset)
                assert file.write(data) == len(data)
                contents[offset : offset + len(data)] = data
            os.fsync(file.fileno())
        # By now the kernel need not have it in its cache: nbdfuse answers.
        assert (mount / "nbd").read_bytes() == contents
    assert (tmp_path / "disk.img").read_bytes() == contents


def _need_fuse() -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"nothing can be mounted with FUSE here: /dev/fuse: {error.strerror}")


@contextmanager
def mounted(mount: Path, uri: str) -> Iterator[None]:
    """The export as the file ``nbd`` in a folder."""
    process = subprocess.Popen(["nbdfuse", str(mount), uri], stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: process.poll() is not None or (mount / "nbd").exists())
        if process.poll() is not None:
            _, said = process.communicate()
            assert "mount failed" in said or "ermission" in said or "ermitted" in said, said
            pytest.skip(f"nbdfuse may not mount here: {said.strip()}")
        yield
        call("fusermount3", "-u", str(mount))
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            subprocess.run(["fusermount3", "-uz", str(mount)], check=False)
            process.kill()
        process.communicate()
