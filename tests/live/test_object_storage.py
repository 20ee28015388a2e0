"""Archives in S3: a real server, real processes, and a proxy that fails."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import decode, encode
from command_line import PROGRAM, wait_until
from encrypted import IDENTITY, key_file
from faulty_proxy import ABORT, COMPLETE, CREATE, HEAD, PART, RANGE, Fault, FaultyProxy
from live.nbd_client import Nbd
from live.processes import start as start_server
from live.processes import until
from object_store import Store, moto_server

from pybackup.core.errors import TargetError, TargetFullError
from pybackup.core.places.kinds import StoreUrl
from pybackup.core.stores import upload_part
from pybackup.core.stores.s3_upload import S3Upload
from pybackup.core.stores.upload_part import Step

MIB = 1 << 20
_numbers = itertools.count()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def store(port: int, tmp_path: Path) -> Iterator[Store]:
    with FaultyProxy(port).running() as proxy:
        yield Store(port, proxy, tmp_path, f"bucket-{next(_numbers)}")


def make_disk(path: Path, size: int, seed: int = 1) -> bytes:
    """A disk of noise, which compresses to nothing less, with a hole in its middle."""
    content = bytearray(random.Random(seed).randbytes(size))
    content[size // 2 : size // 2 + 65536] = bytes(65536)
    path.write_bytes(content)
    return bytes(content)


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    return make_disk(tmp_path / "disk.img", 3 * MIB)


@pytest.fixture
def large(tmp_path: Path) -> bytes:
    """Its plain archive takes three parts."""
    return make_disk(tmp_path / "large.img", 20 * MIB)


SAME = ("--uuid", "00010203-0405-0607-0809-0a0b0c0d0e0f", "--time", "1700000000")


def test_an_archive_goes_there_and_back(store: Store, disk: bytes) -> None:
    (store.folder / "a.conf").write_bytes(b"cores: 2\n")
    store.run("run", "disk.img", "-c", "a.conf", *SAME, "file.vma.zst")
    url = store.url("a/b.vma.zst")
    report = store.run("run", "disk.img", "-c", "a.conf", *SAME, "--json", url).json
    assert report["archive"] == url
    assert store.content("a/b.vma.zst") == (store.folder / "file.vma.zst").read_bytes()
    assert store.run("info", "--json", url).json["drives"][0]["size"] == len(disk)
    assert store.run("config", url).out == b"cores: 2\n"
    assert store.run("verify", "--json", url).json == {"archive": url, "sound": True, "protected": True, "damage": []}
    store.run("compare", url, "disk.img")
    store.run("restore", url, "new.img")
    assert (store.folder / "new.img").read_bytes() == disk
    assert store.run("restore", url, "-").out == disk
    assert not store.uploads() and not store.records()


def test_an_archive_of_several_parts(store: Store, large: bytes) -> None:
    store.run("run", "--compress", "none", "large.img", store.url("x.vma"))
    sizes = sorted(one.sent for one in store.proxy.seen if re.match(PART, one.what))
    assert sizes[1:] == [8 * MIB, 8 * MIB]
    store.run("verify", store.url("x.vma"))
    assert store.run("restore", store.url("x.vma"), "-").out == large


def test_parts_grow_and_large_ones_wait_on_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, store.environment[name])
    monkeypatch.setattr(upload_part, "MEMORY", 5 * MIB)
    plan = (Step(2, 5 * MIB, 3), Step(2, 6 * MIB, 2))
    content = random.Random(1).randbytes(22 * MIB)

    async def write(content: bytes) -> None:
        sink = S3Upload(StoreUrl(store.url("x")), plan=plan)
        try:
            await sink.begin()
            for at in range(0, len(content), 3 * MIB):
                await sink.write([content[at : at + MIB], memoryview(content)[at + MIB : at + 3 * MIB]])
            await sink.commit()
        finally:
            await sink.abort()

    with pytest.raises(TargetError, match="it is larger than an object may be"):
        asyncio.run(write(content + b"x"))
    assert store.is_clean()
    store.proxy.seen.clear()
    asyncio.run(write(content))
    assert store.content("x") == content
    sizes = [one.sent for one in store.proxy.seen if re.match(PART, one.what)]
    assert sorted(sizes) == [5 * MIB, 5 * MIB, 6 * MIB, 6 * MIB]

    monkeypatch.setattr(upload_part.tempfile, "TemporaryFile", _no_room)
    store.s3.delete_object(Bucket=store.bucket, Key="x")
    with pytest.raises(TargetFullError, match="no space is left in the temporary folder"):
        asyncio.run(write(content))
    assert store.is_clean()


def _no_room(**_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_large_empty_disk_takes_one_part(store: Store) -> None:
    os.truncate(os.open(store.folder / "empty.img", os.O_CREAT | os.O_WRONLY), 20 << 30)
    store.run("run", "empty.img", store.url("x.vma.zst"))
    assert store.proxy.count(PART) == 1
    store.run("verify", store.url("x.vma.zst"))


def test_disks_in_use_are_backed_up_to_a_url(store: Store, disk: bytes) -> None:
    with store.start("serve", "--control", "control.sock", "--socket", "nbd.sock", "disk.img") as server:
        wait_until((store.folder / "control.sock").exists, "the server", [server])
        store.run("run", "serve:control.sock", store.url("x.vma.zst"))
        assert store.end(server, signal.SIGTERM).code == 0
    assert store.run("restore", store.url("x.vma.zst"), "-").out == disk


def test_memory_stays_bounded(store: Store) -> None:
    """In a process of its own, whose only child is pybackup: the high-water mark of children is that one's."""
    for name, size in (("300M", 300), ("80M", 80)):
        with open(store.folder / name, "wb") as noise:
            for seed in range(size):
                noise.write(random.Random(seed).randbytes(MIB))
    store.run("run", "80M", store.url("80M"))
    for arguments in (
        ("run", "--threads", "2", "--compress", "none", "300M", store.url("300M")),
        ("verify", "--threads", "2", store.url("80M")),
    ):
        program = (
            "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]).returncode;"
            "print(done, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        environment = {**store.environment, "PYBACKUP_PATIENCE": "60"}
        command = [sys.executable, "-c", program, *PROGRAM, *arguments]
        out = subprocess.check_output(command, env=environment, cwd=store.folder)
        code, kilobytes = map(int, out.splitlines()[-1].split())
        assert code == 0
        assert kilobytes < 150 << 10


# -- names that are taken, or not there --


def test_an_object_that_exists_is_not_replaced(store: Store, disk: bytes) -> None:
    store.put("x.vma.zst", b"precious")
    for force in ((), ("--force",)):
        store.fails(5, "is no archive", "run", *force, "disk.img", store.url("x.vma.zst"))
    assert store.content("x.vma.zst") == b"precious"
    archive = encode({"disk": disk[:5000]})
    store.put("x.vma.zst", archive)
    store.fails(5, "exists already; --force replaces it", "run", "disk.img", store.url("x.vma.zst"))
    assert store.content("x.vma.zst") == archive
    assert not store.proxy.count(CREATE)
    store.run("run", "--force", "disk.img", store.url("x.vma.zst"))
    store.run("verify", store.url("x.vma.zst"))


def test_an_object_that_appears_meanwhile_is_not_replaced(store: Store, disk: bytes) -> None:
    def appear(body: bytes) -> bytes:
        store.put("x.vma.zst", b"precious")
        return body

    store.proxy.faults = [Fault(PART, "alter", change=appear)]
    store.fails(5, "appeared while it was being written", "run", "disk.img", store.url("x.vma.zst"))
    assert store.content("x.vma.zst") == b"precious"
    assert not store.uploads() and not store.records()


def test_what_is_not_there(store: Store, disk: bytes) -> None:
    for command in (("verify",), ("info",), ("config",), ("restore", "out.img"), ("compare", "disk.img"), ("serve",)):
        name, *rest = command
        store.fails(4, "it does not exist", name, store.url("nothing"), *rest)
    store.fails(4, "the bucket does not exist", "verify", "s3://no-such-bucket/x")
    store.fails(5, "the bucket does not exist", "run", "disk.img", "s3://no-such-bucket/x")
    assert not (store.folder / "out.img").exists()


def test_what_may_not_be_read_or_written(store: Store, disk: bytes) -> None:
    store.proxy.faults = [Fault("", "403", times=100)]
    store.fails(4, "access is denied", "verify", store.url("x"))
    store.fails(5, "access is denied", "run", "disk.img", store.url("x"))
    store.fails(5, "access is denied", "run", "--force", "disk.img", store.url("x"))
    store.proxy.faults = []
    assert store.is_clean()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("run", "disk.img", "s3://bucket"), "names no file"),
        (("run", "disk.img", "s3://bucket/folder/"), "names no file"),
        (("run", "disk.img", "s3:///key"), "names no bucket"),
        (("run", "disk.img", "http://127.0.0.1/x"), "http:// is no place for an archive; archives are written to"),
        (("run", "disk.img", "file:///tmp/x"), "by its path alone"),
        (("info", "file:///tmp/x"), "by its path alone"),
        (("info", "nbd://localhost/x"), "nbd:// is no place for an archive"),
        (("run", "--verify", "disk.img", "s3://bucket/x"), "afterwards: pybackup verify s3://bucket/x"),
        (("restore", "disk.img", "s3://bucket/x"), "drives are not restored to s3://"),
        (("serve", "disk.img", "s3://bucket/x"), "is served alone"),
    ],
)
def test_what_makes_no_sense(store: Store, disk: bytes, arguments: tuple[str, ...], sentence: str) -> None:
    if arguments[0] == "restore":
        store.run("run", "disk.img", "disk.vma.zst")
        arguments = ("restore", "disk.vma.zst", *arguments[2:])
    store.fails(2, sentence, *arguments)


def test_a_package_that_is_missing_is_named(store: Store, disk: bytes) -> None:
    (store.folder / "without").mkdir()
    (store.folder / "without" / "s3fs.py").write_text("raise ImportError('no s3fs here')")
    hidden = {"PYTHONPATH": str(store.folder / "without")}
    for arguments in (("run", "disk.img", store.url("x")), ("info", store.url("x"))):
        store.fails(2, f"{sys.executable} -m pip install ", *arguments, environment=hidden)


def test_a_server_that_is_not_there(store: Store, disk: bytes) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{unused.getsockname()[1]}", "PYBACKUP_PATIENCE": "1"}
        store.fails(5, "the server cannot be reached", "run", "disk.img", store.url("x"), environment=nowhere)
        store.fails(4, "the server cannot be reached", "info", store.url("x"), environment=nowhere)


def test_no_credentials(store: Store, disk: bytes) -> None:
    without = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    store.fails(5, "AWS_ACCESS_KEY_ID", "run", "disk.img", store.url("x"), environment=without)


def test_patience_is_a_number(store: Store, disk: bytes) -> None:
    for wrong in ("soon", "-1", "nan", "inf"):
        store.fails(2, "is not a number", "run", "disk.img", store.url("x"), environment={"PYBACKUP_PATIENCE": wrong})


# -- a server that fails while an archive is written --


@pytest.mark.parametrize(
    "match, kind",
    [
        *((PART, kind) for kind in ("500", "503", "reset", "lose", "stall", "stall-body")),
        *((COMPLETE, kind) for kind in ("503", "reset", "lose", "error200")),
        (HEAD, "503"),
        (CREATE, "503"),
    ],
)
def test_a_request_that_fails_once_is_repeated(store: Store, large: bytes, match: str, kind: str) -> None:
    store.proxy.faults = [Fault(match, kind, after=1 if match == PART else 0)]
    store.run("run", "--compress", "none", "large.img", store.url("x.vma"))
    assert store.proxy.faults[0].times == 0
    assert decode(store.content("x.vma")).drives == {"large": large}
    assert not store.uploads() and not store.records()


@pytest.mark.parametrize(
    "match, kind, sentence",
    [
        (PART, "500", "the server fails (500 InternalError"),
        (PART, "503", "the server asks to slow down"),
        (PART, "reset", "the connection broke"),
        (PART, "stall", "the server does not answer"),
        (PART, "stall-body", "the server does not answer"),
        (PART, "403", "access is denied"),
        (COMPLETE, "500", "the server fails (500 InternalError"),
        (COMPLETE, "error200", "the server fails (500 InternalError"),
        (COMPLETE, "reset", "the connection broke"),
        (CREATE, "503", "the server asks to slow down"),
    ],
)
def test_a_request_that_goes_on_failing_ends_the_backup(
    store: Store, large: bytes, match: str, kind: str, sentence: str
) -> None:
    store.proxy.faults = [Fault(match, kind, times=10**6)]
    patience = {"PYBACKUP_PATIENCE": "1"}
    store.fails(5, sentence, "run", "--compress", "none", "large.img", store.url("x.vma"), environment=patience)
    assert store.is_clean()
    assert kind == "403" or store.proxy.count(match) > 1


def test_a_failed_backup_keeps_the_object_that_it_should_replace(store: Store, disk: bytes) -> None:
    last = encode({"disk": disk[:5000]})
    store.put("x.vma.zst", last)
    store.proxy.faults = [Fault(COMPLETE, "503", times=10**6)]
    patience = {"PYBACKUP_PATIENCE": "2"}
    store.run("run", "--force", "disk.img", store.url("x.vma.zst"), code=5, environment=patience)
    assert store.content("x.vma.zst") == last
    assert not store.uploads()


def test_a_server_that_loses_a_part_does_not_keep_a_short_object(store: Store, large: bytes) -> None:
    def forget_last(body: bytes) -> bytes:
        return re.sub(rb"<Part>(?:(?!<Part>).)*</Part>(?=</CompleteMultipartUpload>)", b"", body, flags=re.DOTALL)

    store.proxy.faults = [Fault(COMPLETE, "alter", change=forget_last)]
    store.fails(5, "the server kept 16777216 bytes of", "run", "--compress", "none", "large.img", store.url("x.vma"))
    assert store.is_clean()


def test_what_cannot_be_aborted_is_aborted_by_the_next_run(store: Store, disk: bytes) -> None:
    store.proxy.faults = [Fault(PART, "503", times=10**6), Fault(ABORT, "503", times=10**6)]
    patience = {"PYBACKUP_PATIENCE": "1"}
    store.fails(5, "slow down", "run", "disk.img", store.url("x.vma.zst"), environment=patience)
    assert len(store.uploads()) == 1 and not store.keys()
    store.proxy.faults = []
    store.run("run", "disk.img", store.url("x.vma.zst"))
    assert not store.uploads() and not store.records()


# -- a run that is interrupted --


def uploading(store: Store, url: str) -> subprocess.Popen[bytes]:
    """A backup of which a part has arrived, and whose next part never will."""
    store.proxy.faults = [Fault(PART, "stall", after=1)]
    process = store.start("run", "--compress", "none", "large.img", url, PYBACKUP_PATIENCE="600")
    wait_until(lambda: store.proxy.count(PART) > 1, "two parts", [process])
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(store: Store, large: bytes, number: signal.Signals) -> None:
    with uploading(store, store.url("x.vma")) as process:
        done = store.end(process, number)
    assert done.code == 128 + number
    assert store.is_clean()


@pytest.mark.parametrize("match", [HEAD, PART, COMPLETE])
def test_a_signal_while_the_server_does_not_answer(store: Store, large: bytes, match: str) -> None:
    store.proxy.faults = [Fault(match, "stall")]
    with store.start("run", "large.img", store.url("x.vma.zst"), PYBACKUP_PATIENCE="600") as process:
        wait_until(lambda: store.proxy.count(match) > 0, "a request", [process])
        assert store.end(process, signal.SIGINT).code == 130
    assert store.is_clean()


def test_a_run_that_was_killed_is_cleaned_up_by_the_next(store: Store, large: bytes) -> None:
    with uploading(store, store.url("x.vma")) as process:
        process.kill()
        process.communicate()
    assert not store.keys() and len(store.uploads()) == 1
    # Another object's backup leaves it alone.
    store.run("run", "large.img", store.url("other.vma.zst"))
    assert len(store.uploads()) == 1
    store.run("run", "large.img", store.url("x.vma"))
    assert not store.uploads() and not store.records()
    store.run("compare", store.url("x.vma"), "large.img")


def test_two_runs_never_write_one_object(store: Store, large: bytes) -> None:
    with uploading(store, store.url("x.vma")) as process:
        store.fails(6, "another run is writing", "run", "large.img", store.url("x.vma"))
        assert len(store.uploads()) == 1
        assert store.end(process, signal.SIGTERM).code == 143
    assert store.is_clean()


# -- a server that fails while an archive is read --


@pytest.fixture
def archived(store: Store, large: bytes) -> str:
    store.run("run", "large.img", store.url("x.vma.zst"))
    store.proxy.seen.clear()
    return store.url("x.vma.zst")


@pytest.mark.parametrize("number, kind", [*enumerate(["500", "503", "reset", "lose", "stall", "truncate"])])
def test_a_range_that_fails_once_is_fetched_again(
    store: Store, large: bytes, archived: str, number: int, kind: str
) -> None:
    store.proxy.faults = [Fault(RANGE, kind, after=number)]
    assert store.run("restore", archived, "-").out == large
    assert store.proxy.faults[0].times == 0


@pytest.mark.parametrize(
    "kind, sentence",
    [
        ("500", "the server fails (500 InternalError"),
        ("503", "the server asks to slow down"),
        ("reset", "the connection broke"),
        ("truncate", "the connection broke"),
        ("stall", "the server does not answer"),
        ("403", "access is denied"),
    ],
)
def test_a_range_that_goes_on_failing_ends_the_restore(store: Store, archived: str, kind: str, sentence: str) -> None:
    patience = {"PYBACKUP_PATIENCE": "1"}
    store.proxy.faults = [Fault(RANGE, kind, times=10**6, after=8)]
    store.fails(4, sentence, "restore", archived, "out.img", environment=patience)
    assert not (store.folder / "out.img").exists()
    store.proxy.faults = [Fault(RANGE, kind, times=10**6)]
    store.fails(4, sentence, "info", archived, environment=patience)


def test_a_range_that_goes_on_failing_ends_verify(store: Store, archived: str) -> None:
    store.proxy.faults = [Fault(RANGE, "truncate", times=10**6, after=4)]
    done = store.run("verify", "--json", archived, code=4, environment={"PYBACKUP_PATIENCE": "1"})
    assert done.json["sound"] is False
    assert "cannot read" in done.err and "the connection broke" in done.err


def test_an_object_replaced_while_it_is_read_is_noticed(store: Store, archived: str) -> None:
    def replace(body: bytes) -> bytes:
        store.put("x.vma.zst", bytes(25 * MIB))
        return body

    store.proxy.faults = [Fault(RANGE, "alter", after=6, change=replace)]
    store.fails(4, "it was replaced while it was read", "restore", archived, "out.img")


@pytest.mark.parametrize("command", [("verify",), ("info",), ("restore", "out.img"), ("config",)])
def test_a_signal_while_a_range_does_not_come(store: Store, archived: str, command: tuple[str, ...]) -> None:
    name, *rest = command
    store.proxy.faults = [Fault(RANGE, "stall", times=10**6)]
    with store.start(name, archived, *rest, PYBACKUP_PATIENCE="600") as process:
        wait_until(lambda: store.proxy.count(RANGE) > 0, "a request", [process])
        done = store.end(process, signal.SIGINT)
    assert done.code == 130, done.err
    assert "Traceback" not in done.err


def test_a_damaged_object_is_damaged(store: Store, archived: str) -> None:
    content = bytearray(store.content("x.vma.zst"))
    content[len(content) // 2] ^= 1
    store.put("x.vma.zst", bytes(content))
    assert "damaged" in store.run("verify", archived, code=4).err
    done = store.run("restore", "--skip-damaged", archived, "out.img", code=4)
    assert "lost" in done.err


# -- no more is fetched than is needed --


@pytest.fixture
def three(store: Store) -> dict[str, bytes]:
    """An archive of three drives, the second of which is small."""
    disks = {
        "one": make_disk(store.folder / "one.img", 12 * MIB, 1),
        "two": make_disk(store.folder / "two.img", 2 * MIB, 2),
        "three": make_disk(store.folder / "three.img", 12 * MIB, 3),
    }
    store.run("run", *(f"{name}.img" for name in disks), store.url("x.vma.zst"))
    store.proxy.seen.clear()
    return disks


INDEX = 96 << 10
"""Bytes: more than the index, the header and the gaps of these archives take."""


def test_info_and_config_fetch_the_index_alone(store: Store, three: dict[str, bytes]) -> None:
    assert len(store.run("info", "--json", store.url("x.vma.zst")).json["drives"]) == 3
    assert 0 < store.proxy.fetched() < INDEX
    store.proxy.seen.clear()
    assert store.run("config", "--json", store.url("x.vma.zst")).json == {}
    assert 0 < store.proxy.fetched() < INDEX


def test_one_drive_fetches_its_frames_alone(store: Store, three: dict[str, bytes]) -> None:
    assert store.run("restore", store.url("x.vma.zst"), "-", "--drive", "two").out == three["two"]
    # A frame holds up to a mebibyte, and may belong to two drives at either end.
    assert 2 * MIB - 65536 < store.proxy.fetched() < 4 * MIB + INDEX
    store.proxy.seen.clear()
    store.run("compare", store.url("x.vma.zst"), "two.img")
    assert store.proxy.fetched() < 4 * MIB + INDEX


def test_one_megabyte_fetches_its_frames_alone(store: Store, three: dict[str, bytes]) -> None:

    with store.start("serve", "--control", "control.sock", "--socket", "nbd.sock", store.url("x.vma.zst")) as server:
        wait_until((store.folder / "control.sock").exists, "the server", [server])
        opened = store.proxy.fetched()
        assert opened < INDEX
        client = Nbd(str(store.folder / "nbd.sock"), "three")
        assert client.read(5 * MIB, MIB) == three["three"][5 * MIB : 6 * MIB]
        client.close()
        assert MIB <= store.proxy.fetched() - opened < 3 * MIB + INDEX
        assert store.end(server, signal.SIGTERM).code == 0


def test_the_same_archive_over_http(store: Store, three: dict[str, bytes]) -> None:
    url = f"{store.proxy.url}/{store.bucket}/x.vma.zst"
    assert store.run("restore", f"{url}?signature=secret", "-", "--drive", "two").out == three["two"]
    assert store.proxy.fetched() < 4 * MIB + INDEX
    assert "secret" not in store.run("verify", f"{url}?signature=secret").out.decode()


def test_a_part_of_a_drive_takes_only_its_frames_from_the_store(store: Store) -> None:
    content = random.Random(9).randbytes(8 << 20)
    (store.folder / "disk.raw").write_bytes(content)
    store.run("run", "disk.raw", store.url("part.vma.zst"))
    before = len(store.proxy.seen)
    store.run("restore", store.url("part.vma.zst"), "part", "--offset", "5M", "--length", "1000")
    assert (store.folder / "part").read_bytes() == content[5 << 20 :][:1000]
    assert 0 < sum(one.answered for one in store.proxy.seen[before:]) < 2 << 20


def test_a_live_restore_outlives_a_store_that_is_lost_for_a_while(store: Store) -> None:
    content = random.Random(10).randbytes(8 << 20)
    (store.folder / "disk.raw").write_bytes(content)
    store.run("run", "disk.raw", store.url("live.vma.zst"))
    environment = {**store.environment, "PYBACKUP_PATIENCE": "0.2"}
    where = ("--socket", str(store.folder / "nbd.sock"), "--control", str(store.folder / "control.sock"))
    command = [*PROGRAM, "restore", "--live", store.url("live.vma.zst"), "new.raw", "--speed", "1M", *where]
    with start_server(command, environment, cwd=store.folder, stderr=subprocess.DEVNULL) as server:
        store.proxy.faults.append(Fault(RANGE, "503", times=100_000))
        with Nbd(server.nbd, "disk") as guest:
            guest.write(4 << 20, b"w" * (1 << 20))
            with pytest.raises(OSError):
                for at in range(8):
                    guest.read(at << 20, 1 << 20)
            assert guest.read(4 << 20, 1 << 20) == b"w" * (1 << 20)
            guest.flush()
        store.proxy.faults.clear()
        server.ask("speed", speed=0)
        until(lambda: server.ask("status")["restore"]["state"] == "concluded")
    expected = content[: 4 << 20] + b"w" * (1 << 20) + content[5 << 20 :]
    assert (store.folder / "new.raw").read_bytes() == expected


def test_an_encrypted_archive_of_which_only_the_ends_are_fetched(store: Store, tmp_path: Path) -> None:
    """Header, end, index: not the data. And only what a drive takes, of two."""
    disks = {"a.img": make_disk(tmp_path / "a.img", 6 * MIB, 2), "b.img": make_disk(tmp_path / "b.img", MIB, 3)}
    key = key_file(tmp_path)
    place = store.url("vm.vma.zst.age")
    store.run("run", "--recipient", str(IDENTITY.recipient()), *disks, place)
    size = len(store.content("vm.vma.zst.age"))
    store.run("verify", place, code=7)
    store.run("verify", "--identity", key, place)
    store.proxy.seen.clear()
    told = store.run("info", "--json", "--identity", key, place).json
    assert [one["size"] for one in told["drives"]] == [6 * MIB, MIB]
    fetched = [one for one in store.proxy.seen if re.match(RANGE, one.what)]
    assert len(fetched) <= 4
    assert sum(one.answered for one in fetched) < 4 * 65536 < size / 10
    store.proxy.seen.clear()
    store.run("restore", "--identity", key, place, "b=back.img")
    assert (tmp_path / "back.img").read_bytes() == disks["b.img"]
    assert sum(one.answered for one in store.proxy.seen if re.match(RANGE, one.what)) < size / 3


def test_a_chain_of_nights_in_a_store(store: Store, tmp_path: Path) -> None:
    """Deltas find their parents beside them; one that lost its parent says which, and is not restored."""
    chance, contents = random.Random(5), []
    disk = bytearray(make_disk(tmp_path / "disk.img", 3 * MIB))
    for night in range(3):
        at = chance.randrange(len(disk) - 5000)
        disk[at : at + 5000] = chance.randbytes(5000)
        (tmp_path / "disk.img").write_bytes(disk)
        contents.append(bytes(disk))
        url = store.url(f"vm/disk-2024010{night + 1}.vma.zst")
        told = store.run("run", "--incremental", "--json", "disk.img", url).json
        assert told["ways"][0]["way"] == ("digest" if night else "full")
    for night, content in enumerate(contents):
        assert store.run("restore", store.url(f"vm/disk-2024010{night + 1}.vma.zst"), "-").out == content
    last = store.url("vm/disk-20240103.vma.zst")
    told = store.run("info", "--json", last).json
    assert [one["archive"] for one in told["needs"]] == [store.url(f"vm/disk-2024010{n}.vma.zst") for n in (2, 1)]
    store.run("compare", last, "disk.img")
    store.run("verify", "--chain", last)
    # A delta that was copied away needs to be told where the others are.
    (tmp_path / "copy.vma.zst").write_bytes(store.content("vm/disk-20240103.vma.zst"))
    store.fails(4, "then called disk-20240102.vma.zst", "restore", "copy.vma.zst", "x")
    assert store.run("restore", "--parents", store.url("vm"), "copy.vma.zst", "-").out == contents[2]
    store.s3.delete_object(Bucket=store.bucket, Key="vm/disk-20240102.vma.zst")
    store.fails(4, "which was not found", "restore", last, "x")
    assert not (tmp_path / "x").exists()
    told = store.run("run", "--incremental", "--json", "disk.img", store.url("vm/disk-20240104.vma.zst")).json
    assert told["ways"][0]["way"] == "digest"
    assert store.run("restore", store.url("vm/disk-20240104.vma.zst"), "-").out == contents[2]
