"""Backups of what other people's NBD servers offer: what is in them, and what becomes of their failures."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from live.nbd_client import Nbd
from live.processes import DEADLINE, PYBACKUP, call, ended, interrupt, restored, served, until

Need = Callable[..., None]
SIZE = (24 << 20) + 512


class Running(NamedTuple):
    """A server that listens: the process, and the URI of its export."""

    process: subprocess.Popen[bytes]
    uri: str


@contextlib.contextmanager
def running(command: Sequence[str], uri: str, pid_file: Path) -> Iterator[Running]:
    """Start a server, which writes its number into a file when it listens; end it."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until(lambda: process.poll() is not None or (pid_file.exists() and pid_file.read_text().endswith("\n")))
        assert process.poll() is None, process.communicate()[1]
        yield Running(process, uri)
    finally:
        process.kill()
        process.communicate()
        pid_file.unlink(missing_ok=True)


def nbdkit(folder: Path, *arguments: str, export: str = "disk") -> contextlib.AbstractContextManager[Running]:
    where, pid = folder / "nbdkit.sock", folder / "nbdkit.pid"
    command = ["nbdkit", "-f", "-U", str(where), "-P", str(pid), *arguments]
    return running(command, f"nbd+unix:///{export}?socket={where}", pid)


def nbdkit_tcp(folder: Path, host: str, *arguments: str) -> contextlib.AbstractContextManager[Running]:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        port = found.getsockname()[1]
    pid = folder / "nbdkit.pid"
    command = ["nbdkit", "-f", "-i", host, "-p", str(port), "-P", str(pid), *arguments]
    return running(command, f"nbd://{f'[{host}]' if ':' in host else host}:{port}/disk", pid)


def qemu_nbd(
    folder: Path, image: Path, image_format: str, *arguments: str
) -> contextlib.AbstractContextManager[Running]:
    where, pid = folder / "qemu.sock", folder / "qemu.pid"
    common = ["qemu-nbd", "-k", str(where), "-t", "-r", "-f", image_format, "--pid-file", str(pid)]
    return running([*common, *arguments, str(image)], f"nbd+unix:///?socket={where}", pid)


def storage_daemon(folder: Path, image: Path) -> contextlib.AbstractContextManager[Running]:
    where, pid = folder / "qsd.sock", folder / "qsd.pid"
    command = [
        "qemu-storage-daemon",
        *("--blockdev", f"driver=file,node-name=f,filename={image},read-only=on"),
        *("--blockdev", "driver=raw,node-name=d,file=f,read-only=on"),
        *("--nbd-server", f"addr.type=unix,addr.path={where},max-connections=8"),
        *("--export", "type=nbd,id=e,node-name=d,name=disk,writable=off"),
        *("--pidfile", str(pid)),
    ]
    return running(command, f"nbd+unix:///disk?socket={where}", pid)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file with data, holes, and zeros that are written."""
    path, source = tmp_path / "disk.img", random.Random(11)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in range(0, SIZE, 3 << 20):
            file.seek(offset)
            file.write(
                source.randbytes(min(700_123, SIZE - offset)) + bytes(min(20_000, max(0, SIZE - offset - 700_123)))
            )
    assert path.stat().st_size == SIZE
    return path


def saved(uri: str, folder: Path, *options: str, code: int = 0) -> bytes:
    """What a backup of it restores to."""
    archive = folder / "saved.vma.zst"
    call("run", f"disk={uri}", str(archive), *options, code=code)
    call("verify", str(archive))
    call("restore", str(archive), str(folder / "restored.raw"))
    call("compare", str(archive), str(folder / "restored.raw"))
    return (folder / "restored.raw").read_bytes()


# -- what is in them --

KITS: dict[str, list[str]] = {
    "file": ["file", "IMAGE"],
    "one request at a time": ["--filter=noparallel", "file", "IMAGE", "serialize=requests"],
    "one connection": ["--filter=multi-conn", "file", "IMAGE", "multi-conn-mode=disable"],
    "several connections": ["--filter=multi-conn", "file", "IMAGE", "multi-conn-mode=unsafe"],
    "whole sectors": [
        *("--filter=blocksize-policy", "file", "IMAGE"),
        *(
            "blocksize-minimum=512",
            "blocksize-preferred=4096",
            "blocksize-maximum=65536",
            "blocksize-error-policy=error",
        ),
    ],
    "it ends with its last client": ["--filter=exitlast", "file", "IMAGE"],
    "slow": ["--filter=delay", "file", "IMAGE", "rdelay=3ms", "delay-extents=3ms"],
    "no block status": ["--filter=noextents", "file", "IMAGE"],
    "no structured replies": ["--no-sr", "file", "IMAGE"],
    "another block status": ["--filter=extentlist", "file", "IMAGE", "extentlist=EXTENTS"],
}


@pytest.mark.parametrize("name", KITS)
def test_nbdkit_and_its_filters(need: Need, tmp_path: Path, image: Path, name: str) -> None:
    need("nbdkit")
    # Data, and holes that are not said to be zero: they have to be read as well.
    lines = [f"{at} {min(5000, SIZE - at)} {'hole' * (at % 3)}\n" for at in range(0, SIZE, 5000)]
    (tmp_path / "extents").write_text("".join(lines).replace("holehole", "hole"))
    arguments = [one.replace("IMAGE", str(image)).replace("EXTENTS", str(tmp_path / "extents")) for one in KITS[name]]
    with nbdkit(tmp_path, *arguments) as server:
        assert saved(server.uri, tmp_path) == image.read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [["memory", "5000001"], ["pattern", "size=3000000"], ["data", "data=@0x100000 ( 1 2 3 )*9 @0x280001 9"]],
    ids=["memory", "pattern", "data"],
)
def test_nbdkit_plugins_against_nbdcopy(need: Need, tmp_path: Path, arguments: list[str]) -> None:
    need("nbdkit", "nbdcopy")
    with nbdkit(tmp_path, *arguments) as server:
        subprocess.run(["nbdcopy", server.uri, str(tmp_path / "copied.raw")], check=True, timeout=DEADLINE)
        assert saved(server.uri, tmp_path) == (tmp_path / "copied.raw").read_bytes()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_over_tcp(need: Need, tmp_path: Path, image: Path, host: str) -> None:
    need("nbdkit")
    with nbdkit_tcp(tmp_path, host, "file", str(image)) as server:
        assert saved(server.uri, tmp_path) == image.read_bytes()


@pytest.mark.parametrize("shared", ["1", "2", "8"])
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_qemu_nbd(need: Need, tmp_path: Path, image: Path, image_format: str, shared: str) -> None:
    need("qemu-nbd", "qemu-img")
    what = image
    if image_format == "qcow2":
        what = tmp_path / "disk.qcow2"
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(image), str(what)]
        subprocess.run(command, check=True, timeout=DEADLINE)
    with qemu_nbd(tmp_path, what, image_format, f"--shared={shared}") as server:
        assert saved(server.uri, tmp_path) == image.read_bytes()


def test_qemu_storage_daemon(need: Need, tmp_path: Path, image: Path) -> None:
    need("qemu-storage-daemon")
    with storage_daemon(tmp_path, image) as server:
        assert saved(server.uri, tmp_path) == image.read_bytes()


def test_compare_reads_an_export(need: Need, tmp_path: Path, image: Path) -> None:
    need("nbdkit")
    with nbdkit(tmp_path, "file", str(image)) as server:
        call("run", str(image), str(tmp_path / "a.vma"))
        call("compare", str(tmp_path / "a.vma"), server.uri)
        with image.open("r+b") as file:
            file.seek(12345)
            file.write(b"?")
        call("compare", str(tmp_path / "a.vma"), server.uri, code=1)


# -- what becomes of their failures --


def failing(command: Sequence[str], code: int) -> str:
    said = call(*command, code=code).stderr
    assert said.startswith("pybackup: ") and said.count("\n") == 1, said
    return said


def unreadable(image: Path) -> list[str]:
    """An export that cannot be read at all."""
    return ["--filter=error", "file", str(image), "error-pread=EIO", "error-pread-rate=100%"]


def test_an_unreadable_disk(need: Need, tmp_path: Path, image: Path) -> None:
    need("nbdkit")
    archive = tmp_path / "a.vma.zst"
    with nbdkit(tmp_path, *unreadable(image)) as server:
        said = failing(["run", server.uri, str(archive)], 3)
        assert re.search(r"cannot read drive disk at byte \d+: Input/output error; --skip-unreadable saves", said)
        assert not archive.exists()


def test_unreadable_places_are_listed_and_the_rest_is_saved(need: Need, tmp_path: Path, image: Path) -> None:
    need("nbdkit")
    archive, script = tmp_path / "a.vma.zst", tmp_path / "plugin.sh"
    script.write_text(BAD_SECTORS.format(image=image, size=SIZE))
    script.chmod(0o755)
    with nbdkit(tmp_path, "sh", str(script)) as server:
        said = call("run", "--skip-unreadable", server.uri, str(archive), code=3).stderr
    assert said.count("\n") == 1 and "drive disk: 8192 bytes at 3149824 could not be read" in said
    call("restore", str(archive), str(tmp_path / "restored.raw"))
    expected = bytearray(image.read_bytes())
    expected[3149824 : 3149824 + 8192] = bytes(8192)
    assert (tmp_path / "restored.raw").read_bytes() == expected


BAD_SECTORS = """#!/bin/sh
case "$1" in
get_size) echo {size} ;;
thread_model) echo parallel ;;
pread)
    if [ "$4" -lt 3158016 ] && [ $(($4 + $3)) -gt 3149824 ]; then echo "EIO a bad sector" >&2; exit 1; fi
    dd if={image} iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=1M status=none ;;
*) exit 2 ;;
esac
"""


@pytest.mark.parametrize("options", [[], ["--skip-unreadable"]])
def test_a_server_that_is_killed_fails_the_backup(need: Need, tmp_path: Path, image: Path, options: list[str]) -> None:
    """A connection that is lost is no bad place of the disk, and leaves no archive."""
    need("nbdkit")
    folder = tmp_path / "out"
    folder.mkdir()
    with nbdkit(tmp_path, "file", str(image)) as server:
        command = [PYBACKUP, "run", server.uri, str(folder / "a.vma.zst"), "--speed", "1M", *options]
        backup = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: list(folder.iterdir()) or backup.poll() is not None)
        server.process.kill()
        code, said = ended(backup)
    assert code == 3 and re.fullmatch(r"pybackup: nbd\+unix:///disk.*: the NBD server ended the connection.*\n", said)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cancelling_while_the_server_is_silent(need: Need, tmp_path: Path, image: Path, number: int) -> None:
    need("nbdkit")
    folder = tmp_path / "out"
    folder.mkdir()
    with nbdkit(tmp_path, "--filter=delay", "file", str(image), "rdelay=3600") as server:
        command = [PYBACKUP, "run", server.uri, str(folder / "a.vma.zst")]
        backup = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: list(folder.iterdir()) or backup.poll() is not None)
        code, said = interrupt(backup, number)
    assert (code, said) == (128 + number, "pybackup: cancelled\n")
    assert not list(folder.iterdir())


@contextlib.contextmanager
def listening(path: Path, greeting: bytes) -> Iterator[threading.Event]:
    """Something that accepts one connection, says this, and waits; the event tells that somebody came."""
    came = threading.Event()

    def speak() -> None:
        client, _ = listener.accept()
        came.set()
        with client, contextlib.suppress(OSError):
            client.sendall(greeting)
            while client.recv(4096):
                pass

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=speak)
        thread.start()
        yield came
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cancelling_while_connecting(tmp_path: Path, number: int) -> None:
    with listening(tmp_path / "s", b"NBDM") as came:
        command = [PYBACKUP, "run", f"nbd+unix:///?socket={tmp_path / 's'}", str(tmp_path / "a.vma")]
        backup = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert came.wait(DEADLINE)
        assert interrupt(backup, number) == (128 + number, "pybackup: cancelled\n")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"])
def test_servers_of_other_protocols(tmp_path: Path, greeting: bytes) -> None:
    with listening(tmp_path / "s", greeting):
        said = failing(["run", f"nbd+unix:///?socket={tmp_path / 's'}", str(tmp_path / "a.vma")], 3)
    assert "this is no NBD server" in said


def test_who_is_not_there(need: Need, tmp_path: Path, image: Path) -> None:
    need("qemu-storage-daemon")
    archive = str(tmp_path / "a.vma")
    assert "No such file or directory" in failing(["run", f"nbd+unix:///?socket={tmp_path}/none", archive], 3)
    assert "Connection refused" in failing(["run", "nbd://127.0.0.1:1/x", archive], 3)
    said = failing(["run", "nbd://nbd.invalid/x", archive], 3)
    assert "not known" in said or "name resolution" in said
    assert "TLS is not supported" in failing(["run", "nbds://localhost/x", archive], 2)
    with storage_daemon(tmp_path, image) as server:
        wrong = server.uri.replace("/disk?", "/disc?")
        assert failing(["run", wrong, archive], 3) == f"pybackup: cannot use {wrong}: it has no such export\n"
    assert not Path(archive).exists()


# -- a disk of another server, served by ours --

SERVED = {
    "any block size": ["file", "IMAGE"],
    "whole pages": [
        *("--filter=blocksize-policy", "file", "IMAGE", "blocksize-minimum=4096", "blocksize-preferred=4096"),
        *("blocksize-maximum=1M", "blocksize-error-policy=error"),
    ],
    "no zeroes, no trim": ["--filter=nozero", "file", "IMAGE", "zeromode=none"],
}


@pytest.mark.parametrize("name", SERVED)
def test_a_disk_of_another_server_is_backed_up_while_it_is_in_use(need: Need, tmp_path: Path, name: str) -> None:
    need("nbdkit")
    old = random.Random(5).randbytes(8 << 20)
    image, source, new = tmp_path / "disk.img", random.Random(6), bytearray(old)
    image.write_bytes(old)
    arguments = [one.replace("IMAGE", str(image)) for one in SERVED[name]]
    with nbdkit(tmp_path, *arguments) as other, served(tmp_path, other.uri) as server:
        backup = server.start_backup(str(tmp_path / "a.vma"))
        with Nbd(server.nbd, "disk") as guest:
            for _ in range(50):
                offset, length = source.randrange(7 << 20), source.randrange(1, 100_000)
                content = source.choice([bytes(length), source.randbytes(length)])
                new[offset : offset + length] = content
                if any(content):
                    guest.write(offset, content)
                else:
                    guest.zero(offset, length)
            guest.flush()
            assert guest.read(0, len(new)) == new
        server.ask("speed", speed=0)
        assert ended(backup) == (0, "")
        server.stop()
    assert image.read_bytes() == new
    assert restored(tmp_path / "a.vma", tmp_path / "out")["disk"] == old


def test_another_servers_death_fails_guests_and_the_backup(need: Need, tmp_path: Path, image: Path) -> None:
    need("nbdkit")
    with nbdkit(tmp_path, "file", str(image)) as other, served(tmp_path, other.uri) as server:
        backup = server.start_backup(str(tmp_path / "a.vma"))
        with Nbd(server.nbd, "disk") as guest:
            guest.write(0, b"x")
            other.process.kill()
            other.process.wait()
            with pytest.raises(OSError) as failure:
                guest.write(1 << 20, b"x" * 100_000)
            assert failure.value.errno == errno.EIO
        code, said = ended(backup)
        assert code == 3 and "the NBD server ended the connection" in said
        assert not (tmp_path / "a.vma").exists()
        # What was not flushed may be lost, so this is no good end.
        code, said = interrupt(server.process)
        assert code == 3 and "pybackup: nbd+unix:///disk" in said and "Traceback" not in said


def test_a_read_only_export_is_served_read_only(need: Need, tmp_path: Path, image: Path) -> None:
    need("nbdkit")
    with nbdkit(tmp_path, "-r", "file", str(image)) as other:
        said = failing(["serve", other.uri, "--socket", str(tmp_path / "s")], 3)
        assert "it is read-only" in said
        with served(tmp_path, "--read-only", other.uri) as server, Nbd(server.nbd, "disk") as guest:
            assert guest.read(0, 1 << 20) == image.read_bytes()[: 1 << 20]


def test_serving_what_is_not_there(tmp_path: Path) -> None:
    assert "No such file or directory" in failing(["serve", f"nbd+unix:///?socket={tmp_path}/none"], 3)
    with listening(tmp_path / "s", b"NBDM") as came:
        command = [PYBACKUP, "serve", f"nbd+unix:///?socket={tmp_path / 's'}"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert came.wait(DEADLINE)
        assert interrupt(server) == (130, "pybackup: cancelled\n")


def test_memory_stays_bounded(need: Need, tmp_path: Path) -> None:
    """400 MiB of data, through four connections, in less than 150 MiB."""
    need("nbdkit")
    with nbdkit(tmp_path, "pattern", "size=400M") as server:
        command = [PYBACKUP, "run", server.uri, str(tmp_path / "a.vma.zst"), "--json"]
        done = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.splitlines()[-1]) < 150 << 10
    told: Any = json.loads(done.stdout)
    assert os.path.getsize(tmp_path / "a.vma.zst") and told


PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""
