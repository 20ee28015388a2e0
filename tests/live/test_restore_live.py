"""Disks that fill while guests use them: the real program, killed, told to end, asked how far it is."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live.nbd_client import Nbd
from live.processes import PYBACKUP, Server, call, ended, restored, served, until

from pybackup.core.live.control_client import RemoteError

SIZE = 24 << 20
SLOW = ("--speed", "1M")


@pytest.fixture(name="content", scope="module")
def _content() -> bytes:
    draw = random.Random(5)
    return b"".join(draw.randbytes(1 << 20) if draw.random() < 0.7 else bytes(1 << 20) for _ in range(SIZE >> 20))


@pytest.fixture(name="archive", scope="module")
def _archive(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    (folder / "disk.raw").write_bytes(content)
    call("run", str(folder / "disk.raw"), str(folder / "a.vma.zst"))
    return folder / "a.vma.zst"


@contextlib.contextmanager
def recovering(*arguments: str) -> Iterator[Server]:
    """A live restore; killed in the end if it has not ended by itself."""
    command = [PYBACKUP, "restore", "--live", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    try:
        while line := process.stdout.readline():
            lines.append(line.strip())
            if line.startswith("serve:"):
                break
        assert lines and lines[-1].startswith("serve:"), process.communicate()
        yield Server(process, lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def restore_of(server: Server) -> Any:
    return server.ask("status")["restore"]


def test_a_guest_works_at_once_and_nothing_is_lost_when_the_server_is_killed(
    archive: Path, content: bytes, tmp_path: Path
) -> None:
    disk = tmp_path / "new.raw"
    expected = bytearray(content)
    with recovering(str(archive), str(disk), *SLOW) as server, Nbd(server.nbd, "disk") as guest:
        assert guest.read(20 << 20, 4096) == content[20 << 20 :][:4096]
        for at, data in ((5_000_000, b"part" * 5000), (10 << 20, b"w" * (2 << 20))):
            guest.write(at, data)
            expected[at : at + len(data)] = data
        guest.zero(15 << 20, 1 << 20)
        expected[15 << 20 : 16 << 20] = bytes(1 << 20)
        guest.flush()
        server.process.kill()
        server.process.wait()
    assert "incomplete" in call("run", str(disk), str(tmp_path / "b.vma"), code=3).stderr
    with recovering(str(archive), str(disk), *SLOW) as server:
        server.ask("speed", speed=0)
        until(lambda: restore_of(server)["state"] == "concluded")
        assert not Path(f"{disk}.restoring").exists()
        with Nbd(server.nbd, "disk") as guest:
            guest.write(0, b"after")
            expected[:5] = b"after"
        server.ask("quit")
        code, told = ended(server.process)
        assert code == 0 and "going on with" in told
    assert disk.read_bytes() == expected
    assert os.listdir(tmp_path) == ["new.raw"]
    call("run", str(disk), str(tmp_path / "b.vma"))


@pytest.mark.parametrize(
    ("end", "code"), [("quit", 1), (signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["quit", "SIGTERM", "SIGINT"]
)
def test_an_end_before_all_is_there_says_how_to_go_on(
    archive: Path, content: bytes, tmp_path: Path, end: Any, code: int
) -> None:
    disk = tmp_path / "new.raw"
    with recovering(str(archive), str(disk), *SLOW) as server:
        with Nbd(server.nbd, "disk") as guest:
            guest.write(1000, b"new")
        if end == "quit":
            call("ctl", server.control, "quit")
        else:
            server.process.send_signal(end)
        ending, told = ended(server.process)
        assert ending == code
        assert "the same command goes on with it" in told and f"{disk}.restoring" in told
    if end != "quit":
        assert "incomplete" in call("restore", "-f", str(archive), str(disk), code=5).stderr
        return
    assert "incomplete" in call("serve", str(disk), code=3).stderr
    with recovering(str(archive), str(disk)) as server:
        until(lambda: restore_of(server)["state"] == "concluded")
        server.ask("quit")
        assert ended(server.process)[0] == 0
    assert disk.read_bytes() == content[:1000] + b"new" + content[1003:]


def test_it_is_steered_and_backed_up_when_all_is_there(archive: Path, tmp_path: Path) -> None:
    with recovering(str(archive), str(tmp_path / "new.raw"), *SLOW) as server:
        server.ask("pause")
        assert restore_of(server)["state"] == "paused"
        assert "paused" in call("ctl", server.control, "status").stdout
        assert "still being restored" in call("run", f"serve:{server.control}", str(tmp_path / "b"), code=6).stderr
        with pytest.raises(RemoteError, match="not cancelled"):
            server.ask("cancel")
        server.ask("speed", speed=0)
        server.ask("resume")
        until(lambda: restore_of(server)["state"] == "concluded")
        assert restore_of(server)["done"] == SIZE
        call("run", f"serve:{server.control}", str(tmp_path / "b.vma"))
        server.ask("quit")
        assert ended(server.process)[0] == 0
    call("compare", str(tmp_path / "b.vma"), str(tmp_path / "new.raw"))


def test_damage_is_an_error_for_who_reads_it_until_it_is_overwritten(archive: Path, tmp_path: Path) -> None:
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.vma.zst").write_bytes(damaged)
    disk = tmp_path / "new.raw"
    with recovering(str(tmp_path / "damaged.vma.zst"), str(disk)) as server:
        until(lambda: restore_of(server)["problem"] is not None and restore_of(server)["done"] > SIZE // 2)
        assert "does not match" in restore_of(server)["problem"] or "damaged" in restore_of(server)["problem"]
        with Nbd(server.nbd, "disk") as guest:
            for at in range(0, SIZE, 1 << 20):
                with contextlib.suppress(OSError):
                    guest.read(at, 1 << 20)
                    continue
                guest.write(at, b"!" * (1 << 20))
        until(lambda: restore_of(server)["state"] == "concluded")
        server.ask("quit")
        assert ended(server.process)[0] == 0


def test_several_drives_go_to_a_folder(content: bytes, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.img").write_bytes(name.encode() * 50_000)
    call("run", str(tmp_path / "one.img"), str(tmp_path / "two.img"), str(tmp_path / "a.vma.zst"))
    (tmp_path / "disks").mkdir()
    with recovering(str(tmp_path / "a.vma.zst"), str(tmp_path / "disks")) as server:
        assert len(server.lines) == 3
        with Nbd(server.nbd, "two") as guest:
            assert guest.read(0, 3) == b"two"
        until(lambda: restore_of(server)["state"] == "concluded")
        server.ask("quit")
        assert ended(server.process)[0] == 0
    for name in ("one", "two"):
        assert (tmp_path / "disks" / f"{name}.raw").read_bytes() == name.encode() * 50_000
    assert sorted(os.listdir(tmp_path / "disks")) == ["one.raw", "two.raw"]


def test_qemu_sees_the_same_disk_while_it_fills(archive: Path, tmp_path: Path, need: Any) -> None:
    need("qemu-img")
    disk = tmp_path / "new.raw"
    with recovering(str(archive), str(disk), *SLOW) as server:
        uri = f"nbd+unix:///disk?socket={server.nbd}"
        call("restore", str(archive), str(tmp_path / "whole.raw"))
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", uri, tmp_path / "whole.raw"], check=True)
    assert not (tmp_path / "whole.raw.restoring").exists()


def test_an_archive_can_be_written_to_and_nothing_of_it_is_left(archive: Path, content: bytes, tmp_path: Path) -> None:
    before = archive.read_bytes()
    with served(tmp_path, str(archive), "--writable") as server:
        with Nbd(server.nbd, "disk") as guest:
            guest.write(70_000, b"changed")
            guest.zero(2 << 20, 1 << 20)
            guest.flush()
            assert guest.read(69_999, 9) == content[69_999:70_000] + b"changed" + content[70_007:70_008]
            assert guest.read(2 << 20, 1 << 20) == bytes(1 << 20)
            assert guest.read(20 << 20, 4096) == content[20 << 20 :][:4096]
        call("run", f"serve:{server.control}", str(tmp_path / "b.vma"))
    assert archive.read_bytes() == before
    expected = bytearray(content)
    expected[70_000:70_007] = b"changed"
    expected[2 << 20 : 3 << 20] = bytes(1 << 20)
    assert restored(tmp_path / "b.vma", tmp_path / "out")["disk"] == expected
    assert sorted(os.listdir(tmp_path)) == ["b.vma", "out"]


def test_an_overlay_is_kept_and_becomes_the_disk(archive: Path, content: bytes, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.raw"
    for number in range(2):
        with served(tmp_path, str(archive), "--writable", "--overlay", str(overlay)) as server:
            with Nbd(server.nbd, "disk") as guest:
                assert guest.read(70_000, 7) == (b"changed" if number else content[70_000:70_007])
                guest.write(70_000, b"changed")
    assert overlay.stat().st_blocks * 512 < 1 << 20
    assert "incomplete" in call("run", str(overlay), str(tmp_path / "b.vma"), code=3).stderr
    with recovering(str(archive), str(overlay)) as server:
        until(lambda: restore_of(server)["state"] == "concluded")
        server.ask("quit")
        assert ended(server.process)[0] == 0
    assert overlay.read_bytes() == content[:70_000] + b"changed" + content[70_007:]


def test_what_is_no_archive_is_not_served_so(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"x" * 4096)
    assert "one archive" in call("serve", str(tmp_path / "disk.raw"), "--writable", code=2).stderr
    assert "--read-only" in call("serve", str(archive), "--writable", "-r", code=2).stderr


def test_a_file_is_incomplete_wherever_its_map_is(archive: Path, tmp_path: Path) -> None:
    disk, elsewhere = tmp_path / "new.raw", tmp_path / "elsewhere"
    with recovering(str(archive), str(disk), "--map", str(elsewhere), *SLOW) as server:
        server.ask("quit")
        assert ended(server.process)[0] == 1
    try:
        os.getxattr(disk, "user.pybackup.restoring")
    except OSError as error:
        pytest.skip(f"no marks here: {error.strerror}")
    assert "incomplete" in call("run", str(disk), str(tmp_path / "b.vma"), code=3).stderr
    with recovering(str(archive), str(disk), "--map", str(elsewhere)) as server:
        until(lambda: restore_of(server)["state"] == "concluded")
        server.ask("quit")
        assert ended(server.process)[0] == 0
    call("run", str(disk), str(tmp_path / "b.vma"))
