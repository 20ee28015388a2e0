"""Bad input: one clear sentence on stderr, nothing on stdout, nothing changed, and the right exit code."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import encode
from command_line import PROGRAM, Outcome, listing, pybackup

from pybackup.formats import vma

DISK = random.Random(1).randbytes(100_000) + bytes(400_000)
ARCHIVE = encode({"disk": DISK}, configs=[("a.conf", b"x")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "disk.img").write_bytes(DISK)
    (tmp_path / "good.vma").write_bytes(ARCHIVE)
    (tmp_path / "sub").mkdir()
    return tmp_path


def refused(folder: Path, code: int, sentence: str, *arguments: str, stdin: bytes | None = None) -> Outcome:
    before = listing(folder)
    done = pybackup(*arguments, cwd=folder, stdin=stdin)
    assert done.code == code, done.err
    assert done.out == b""
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1 or done.err.startswith("Usage:")
    assert listing(folder) == before
    return done


READERS = [("verify",), ("info",), ("config",), ("restore", "TARGET"), ("compare", "disk.img")]


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "the file is empty"),
        (b"GIF89a" * 1000, "it is not an archive"),
        (b"\x89LZO" + bytes(100), "lzop"),
        (b"VMA\0" + bytes(20), "ends within its header"),
        (ARCHIVE[:50], "ends here"),
        (encode({"disk": DISK}, level=None)[:5000], "ends within its header"),
    ],
    ids=["empty", "foreign", "lzop", "short", "truncated", "plain-truncated"],
)
def test_what_is_no_archive(folder: Path, command: tuple[str, ...], content: bytes, sentence: str) -> None:
    (folder / "bad.vma").write_bytes(content)
    name, *rest = command
    refused(folder, 4, sentence, name, "bad.vma", *rest)
    refused(folder, 4, sentence, name, "-", *rest, stdin=content)


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
@pytest.mark.parametrize("archive, sentence", [("missing.vma", "No such file"), ("sub", "sub")])
def test_an_archive_that_cannot_be_opened(folder: Path, command: tuple[str, ...], archive: str, sentence: str) -> None:
    name, *rest = command
    refused(folder, 4, sentence, name, archive, *rest)


@pytest.mark.parametrize(
    "command",
    [
        ("verify", "--sample", "5%", "missing.vma"),
        ("restore", "missing.vma", "new.raw", "--length", "1M"),
        ("restore", "--live", "missing.vma", "new.raw"),
        ("verify", "--sample", "5%", "missing-link"),
    ],
    ids=lambda command: command[1],
)
def test_an_archive_that_is_missing_is_not_taken_for_a_pipe(folder: Path, command: tuple[str, ...]) -> None:
    (folder / "missing-link").symlink_to("missing.vma")
    refused(folder, 4, "cannot open missing", *command)


@pytest.mark.parametrize("command", READERS[:1] + READERS[3:], ids=lambda command: command[0])
def test_a_truncated_archive(folder: Path, command: tuple[str, ...]) -> None:
    plain = encode({"disk": DISK}, level=None)
    (folder / "bad.vma").write_bytes(plain[: len(plain) - 4096])
    name, *rest = command
    done = pybackup(name, "bad.vma", *rest, cwd=folder)
    assert (done.code, done.out) == (4, b"")
    assert "bad.vma" in done.err
    assert "ends in the middle" in done.err
    assert not (folder / "TARGET").exists()


def run(folder: Path, code: int, sentence: str, *arguments: str) -> None:
    refused(folder, code, sentence, "run", *arguments)


def test_bad_sources(folder: Path) -> None:
    run(folder, 3, "missing.img", "missing.img", "out.vma")
    run(folder, 3, "sub", "sub", "out.vma")
    (folder / "empty.img").touch()
    run(folder, 3, "0 bytes", "empty.img", "out.vma")
    (folder / "guest.img").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(1000))
    run(folder, 3, "qcow2", "guest.img", "out.vma")
    assert pybackup("run", "--format", "raw", "guest.img", "out.vma", cwd=folder).code == 0


def test_bad_targets(folder: Path) -> None:
    run(folder, 5, "exists already", "disk.img", "good.vma")
    run(folder, 5, "does not exist", "disk.img", "nowhere/out.vma")
    run(folder, 5, "it is a folder", "disk.img", "sub")
    run(folder, 5, "it is a folder", "--force", "disk.img", "sub")
    run(folder, 5, "Not a directory", "disk.img", "good.vma/out.vma")
    run(folder, 2, "would be replaced", "--force", "disk.img", "./disk.img")
    (folder / "link").symlink_to("nothing")
    run(folder, 5, "a link to a file that does not exist", "disk.img", "link")
    refused(folder, 5, "exists already", "restore", "good.vma", "disk.img")
    refused(folder, 5, "does not exist", "restore", "good.vma", "nowhere/disk.img")
    refused(folder, 5, "does not exist", "restore", "good.vma", "nowhere/")
    refused(folder, 2, "would be replaced", "restore", "--force", "good.vma", "sub/../good.vma")


def test_requests_that_make_no_sense(folder: Path) -> None:
    run(folder, 2, "not a size", "--speed", "fast", "disk.img", "out.vma")
    run(folder, 2, "two drives are called", "disk.img", "sub/../disk.img", "out.vma")
    run(folder, 2, "cannot be the name", "..=disk.img", "out.vma")
    run(folder, 2, "cannot be the name", "disk.img", "-c", ".=good.vma", "out.vma")
    run(folder, 3, "cannot read the configuration", "disk.img", "-c", "missing.conf", "out.vma")
    run(folder, 2, "--size", "-", "out.vma")
    run(folder, 2, "--json", "disk.img", "-", "--json")
    run(folder, 2, "--json", "disk.img", "/dev/stdout", "--json")
    run(folder, 2, "--verify", "disk.img", "-", "--verify")
    run(folder, 2, "--verify", "disk.img", "/dev/stdout", "--verify")
    run(folder, 2, "no time", "--time", "9" * 30, "disk.img", "out.vma")
    run(folder, 2, "no event matches", "--trace", "nothing.*", "disk.img", "out.vma")
    (folder / "large.conf").write_bytes(bytes(65536))
    run(folder, 2, "65535", "disk.img", "-c", "large.conf", "out.vma")
    refused(folder, 2, "no drive scsi9", "restore", "good.vma", "out", "--drive", "scsi9")
    refused(folder, 2, "no configuration b", "config", "good.vma", "b")
    refused(folder, 2, "where to", "restore", "good.vma")
    refused(folder, 2, "--json", "restore", "--json", "good.vma", "-")


def test_more_drives_than_vma_holds(folder: Path) -> None:
    (folder / "tiny.img").write_bytes(b"x")
    run(folder, 2, "at most 254 drives", *(f"d{number}=tiny.img" for number in range(255)), "out.vma")


def test_a_source_too_large_for_vma(folder: Path) -> None:
    """A sparse file of more than 256 TiB; tmpfs holds one, ext4 does not."""
    place = Path("/dev/shm") / f"pybackup-test-{os.getpid()}.img"
    try:
        place.touch()
        os.truncate(place, (256 << 40) + 1)
    except OSError:
        pytest.skip("no filesystem here holds a file of 256 TiB")
    else:
        run(folder, 2, "256 TiB", str(place), "out.vma")
    finally:
        place.unlink(missing_ok=True)


HEADER = vma.encode_header(vma.Header(bytes(16), 0, (vma.DriveInfo(1, "NAME5", 512),), (("CONF5", b"x"),)))


@pytest.mark.parametrize("old", [b"NAME5", b"CONF5"])
def test_names_that_leave_the_folder(folder: Path, old: bytes) -> None:
    bad = bytearray(HEADER.replace(old, b"../ab"))
    bad[32:48] = bytes(16)
    bad[32:48] = hashlib.md5(bad).digest()
    (folder / "bad.vma").write_bytes(bad)
    for command in (("restore", "bad.vma", "sub", "--with-config"), ("info", "bad.vma"), ("verify", "bad.vma")):
        refused(folder, 4, "'../ab' cannot be the name", *command)
    assert not (folder.parent / "ab").exists()


def test_a_configuration_with_the_name_of_a_drives_file(folder: Path) -> None:
    (folder / "bad.vma").write_bytes(encode({"d": b"disk"}, configs=[("d.raw", b"config")]))
    refused(folder, 4, "both", "restore", "--with-config", "bad.vma", "sub", "--force")
    assert pybackup("restore", "bad.vma", "sub", cwd=folder).code == 0
    assert (folder / "sub" / "d.raw").read_bytes() == b"disk"


def test_a_restore_of_many_of_which_one_exists_leaves_nothing(folder: Path) -> None:
    (folder / "two.vma").write_bytes(encode({"a": b"1", "b": b"2"}))
    (folder / "sub" / "b.raw").write_bytes(b"mine")
    refused(folder, 5, "exists already", "restore", "two.vma", "sub")
    assert listing(folder / "sub") == {"b.raw": b"mine"}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_nothing(folder: Path, small: Path) -> None:
    (folder / "noise.img").write_bytes(random.Random(2).randbytes(1 << 20))
    done = pybackup("run", "noise.img", small / "out.vma", cwd=folder)
    assert (done.code, done.out) == (5, b"")
    assert "no space is left" in done.err
    assert "the archive needs about 1,0" in done.err
    assert listing(small) == {}
    with (small / "y").open("wb") as out:
        full = pybackup("run", "noise.img", "-", cwd=folder, stdout=out)
    assert full.code == 5 and "the archive needs about 1,0" in full.err
    (small / "y").unlink()
    assert pybackup("run", "noise.img", "out.vma", cwd=folder).code == 0
    done = pybackup("restore", "out.vma", small / "noise.img", cwd=folder)
    assert (done.code, done.out) == (5, b"")
    assert "no space is left" in done.err
    assert list(listing(small)) == ["noise.img.partial"]


@pytest.mark.parametrize(
    "arguments, code",
    [
        (("run", "disk.img", "-"), 5),
        (("restore", "good.vma", "-"), 5),
        (("info", "good.vma"), 1),
        (("info", "--json", "good.vma"), 1),
        (("verify", "good.vma"), 1),
        (("config", "good.vma"), 1),
        (("compare", "good.vma", "disk.img"), 1),
        (("run", "--json", "--force", "disk.img", "new.vma"), 0),  # what is done, and there, is no failure
        (("restore", "--json", "--force", "good.vma", "new.img"), 0),
    ],
)
@pytest.mark.parametrize("closing", [">&-", ">/dev/full"])
def test_a_standard_output_that_takes_nothing(
    folder: Path, arguments: tuple[str, ...], code: int, closing: str
) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closing}', "sh", *PROGRAM, *arguments], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.decode().count("\n") == 1
    assert b"standard output" in done.stderr


def test_closed_descriptors_do_not_end_up_in_the_archive(folder: Path) -> None:
    for closing in ("2>&-", "2>&- >&-", "<&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {closing}', "sh", *PROGRAM, "run", "-v", "--force", "disk.img", "out.vma"],
            cwd=folder,
            check=False,
        )
        assert done.returncode == 0
        assert pybackup("verify", "out.vma", cwd=folder).code == 0


def test_whoever_reads_a_report_may_go(folder: Path) -> None:
    script = '"$@" | true; echo ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *PROGRAM, "info", "good.vma"], cwd=folder, capture_output=True, check=False
    )
    assert (done.stdout, done.stderr) in ((b"141\n", b""), (b"0\n", b""))


def test_whoever_reads_an_archive_may_not(folder: Path) -> None:
    (folder / "noise.img").write_bytes(random.Random(2).randbytes(1 << 20))
    script = '"$@" | head -c 100 >/dev/null; echo ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *PROGRAM, "run", "noise.img", "-"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"5\n"
    assert done.stderr == b"pybackup: cannot write the standard output: Broken pipe\n"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["disk.img"], "disk.img is the only name given"),
        (["disk.img", ""], "the name of a disk or of the archive is empty"),
        (["", "new.vma"], "the name of a disk or of the archive is empty"),
        (["qmp:", "new.vma"], "qmp: names no socket: write qmp:PATH"),
        (["x=serve:", "new.vma"], "serve: names no socket: write serve:PATH"),
        (["--size", "1M", "disk.img", "new.vma"], "- is none of the sources"),
        (["--level", "99", "disk.img", "new.vma"], "99 is not in the range 1 to 22"),
    ],
    ids=["no-archive", "empty-archive", "empty-source", "no-monitor", "no-control", "size-without-stdin", "level"],
)
def test_run_asked_for_what_makes_no_sense(folder: Path, arguments: list[str], sentence: str) -> None:
    refused(folder, 2, sentence, "run", *arguments)


def test_the_trace_events_are_listed_without_any_other_argument() -> None:
    for command in ("run", "restore", "verify", "compare"):
        done = pybackup(command, "--trace", "help")
        assert done.code == 0 and b"copy.guest" in done.out
