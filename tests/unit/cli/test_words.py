"""What other programs call our commands, and where they look for disks, is told by our words; exit codes, by side."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from command_line import PROGRAM, Outcome, listing, pybackup

WITHOUT_OVERRIDES = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")
"""Makes root one of those to whom permission can be denied."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("words")
    (made / "d.img").write_bytes(os.urandom(100_000))
    assert pybackup("run", "d.img", "a.vma", cwd=made).code == 0
    (made / "larger.img").write_bytes((made / "d.img").read_bytes() + bytes(1 << 20))
    (made / "smaller.img").write_bytes((made / "d.img").read_bytes()[:512])
    return made


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["backup", "a", "b"], "`pybackup run`"),
        (["ls", "a.vma"], "`pybackup list`"),
        (["forget"], "`pybackup prune`"),
        (["check"], "`pybackup verify`"),
        (["extract"], "`pybackup restore`"),
        (["veryfi"], "`pybackup verify`"),
        (["help", "backup"], "`pybackup run`"),
        (["frobnicate"], "`pybackup help`"),
        (["run", "a", "b", "--overwrite"], "'--force'"),
        (["run", "a", "b", "--compression", "zstd"], "'--compress'"),
        (["restore", "a", "--output", "b"], "'--to'"),
        (["verify", "a", "--thread", "3"], "'--threads'"),
    ],
)
def test_what_others_call_it_is_suggested(asked: list[str], told: str) -> None:
    outcome = pybackup(*asked)
    assert outcome.code == 2 and told in outcome.err.splitlines()[-1]


def test_help_is_what_help_options_say() -> None:
    assert pybackup("help").out == pybackup("--help").out != b""
    assert pybackup("help", "verify").out == pybackup("verify", "--help").out != b""


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["run", "https://h/d.img", "o.vma"], "curl -sf https://h/d.img | pybackup run NAME=- --size"),
        (["run", "s3://b/d.img", "o.vma"], "nbd://"),
        (["run", "file:///d.img", "o.vma"], "path alone"),
        (["run", "me@host:/d.img", "o.vma"], "ssh me@host cat /d.img | pybackup run NAME=- --size"),
        (["run", "d.img", "me@host:/o.vma"], "sftp://me@host/o.vma"),
        (["restore", "a.vma", "host:/dev/vda"], "'|ssh host "),
        (["verify", "me@host:a.vma"], "sftp://me@host/"),
        (["compare", "host:/a.vma", "d.img"], "sftp://host/a.vma"),
    ],
)
def test_other_machines_are_reached_otherwise(folder: Path, asked: list[str], told: str) -> None:
    before = listing(folder)
    outcome = pybackup(*asked, cwd=folder)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1) and told in outcome.err
    assert listing(folder) == before


def test_a_file_here_may_be_called_like_one_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "me@host:d").write_bytes(b"x" * 512)
    assert pybackup("run", "me@host:d", "o.vma", cwd=tmp_path).code == 0
    assert pybackup("run", "x=me@host:d", "./me@host:o.vma", cwd=tmp_path).code == 0


def test_drives_are_restored_by_name(folder: Path, tmp_path: Path) -> None:
    archive = folder / "a.vma"
    assert pybackup("run", folder / "d.img", f"e={folder / 'larger.img'}", "two.vma", cwd=tmp_path).code == 0
    assert pybackup("restore", "two.vma", "e=e.img", "d=d.img", cwd=tmp_path) == (0, b"", "")
    assert (tmp_path / "e.img").read_bytes() == (folder / "larger.img").read_bytes()
    assert (tmp_path / "d.img").read_bytes() == (folder / "d.img").read_bytes()
    for wrong in (
        ["x", "y"],
        ["d=x", "y"],
        ["d=x", "d=y"],
        ["nosuch=x"],
        ["d=x", "--drive", "d"],
        ["x", "--to", "d=y"],
    ):
        before = listing(tmp_path)
        assert pybackup("restore", archive, *wrong, cwd=tmp_path).code == 2
        assert listing(tmp_path) == before
    assert pybackup("restore", archive, "./d=x", cwd=tmp_path).code == 0
    assert (tmp_path / "d=x").exists()


def test_several_archives_are_told_at_once(folder: Path) -> None:
    outcome = pybackup("info", "a.vma", "nosuch.vma", "a.vma", cwd=folder)
    assert outcome.code == 4 and outcome.out.count(b"a.vma: VMA") == 2
    assert outcome.err == "pybackup: cannot open nosuch.vma: No such file or directory\n"
    assert len(pybackup("info", "--json", "a.vma", "a.vma", cwd=folder).out.splitlines()) == 2


def test_a_larger_disk_is_equal_and_a_smaller_one_is_not(folder: Path) -> None:
    equal = pybackup("compare", "a.vma", "larger.img", cwd=folder)
    assert equal.code == 0 and b"the disk of d is 1.00 MiB larger" in equal.out
    assert pybackup("compare", "--json", "a.vma", "larger.img", cwd=folder).json["larger"] == {"d": 1 << 20}
    differ = pybackup("compare", "a.vma", "smaller.img", cwd=folder)
    assert differ.code == 1 and b"99488 bytes at byte 512" in differ.out
    assert b"drive d: the disk ends 99488 bytes before the drive does" in differ.out
    assert pybackup("compare", "--json", "a.vma", "smaller.img", cwd=folder).json["smaller"] == {"d": 99488}


def test_a_name_may_have_spaces_and_any_letters(folder: Path, tmp_path: Path) -> None:
    for name in ("my disk", "Büro"):
        assert pybackup("run", f"{name}=d.img", "-f", tmp_path / "n.vma", cwd=folder).code == 0
        assert pybackup("restore", tmp_path / "n.vma", f"{name}=x.img", "-f", cwd=tmp_path).code == 0
        assert (tmp_path / "x.img").read_bytes() == (folder / "d.img").read_bytes()
    (tmp_path / "my disk=d.img").write_bytes(bytes(512))
    made = pybackup("run", "my disk=d.img", "o.vma", cwd=tmp_path)
    assert made.code == 0 and b"my disk=d  512 B" in pybackup("info", "o.vma", cwd=tmp_path).out
    assert pybackup("run", " x=d.img", "p.vma", cwd=tmp_path).code == 3


def test_what_is_not_there_is_told_as_that(folder: Path, tmp_path: Path) -> None:
    assert pybackup("config", "a.vma", cwd=folder).err == "pybackup: the archive has no configuration\n"
    level = pybackup("run", "--level", "high", "d.img", "o.vma", cwd=folder)
    assert level.code == 2 and "'high' is not a whole number (1 to 22)" in level.err
    for wrong in ("x", "nan"):
        frozen = pybackup("run", "--freeze-timeout", wrong, "d.img", "o.vma", cwd=folder)
        assert frozen.code == 2
        assert f"'{wrong}' is not a number of seconds (more than 0, at most 3600)" in frozen.err
    assert pybackup("run", "d.img", "e=d.img", tmp_path / "two.vma", cwd=folder).code == 0
    refused = pybackup("restore", "two.vma", "new", cwd=tmp_path)
    assert refused.code == 2 and "name a folder, or NAME=TARGET; new is no folder that exists" in refused.err


SOURCES = [
    "nosuch.img",
    "closed/x.img",
    "closed.img",
    "d.img/x",
    "loop",
    "dir",
    "closed.qcow2",
    "x=nbd+unix:///x?socket=closed.img",
]
ARCHIVES = ["nosuch.vma", "closed/x.vma", "closed.vma", "loop", "dir", "d.img"]
TARGETS = ["nosuch/x", "closed/x", "read-only/x", "d.img/x", "loop"]
DENIED = [
    *((3, ["run", what, "o.vma"]) for what in (*SOURCES, "serve:closed/x", "qmp:closed/x", "qmp:closed.img")),
    *((3, ["compare", "a.vma", what, "--drive", "d"]) for what in ("closed.img", "nosuch.img")),
    *((3, ["serve", what]) for what in ("closed.img", "nosuch.img")),
    *((3, ["ctl", what, "status"]) for what in ("closed/x", "d.img")),
    *((3, ["run", "d.img", "-c", what, "o.vma"]) for what in ("nosuch", "closed.img")),
    *((3, ["run", "--job", what]) for what in ("nosuch", "closed.img")),
    *((4, ["info", what]) for what in ARCHIVES),
    *(
        (4, [command, "closed.vma", *more])
        for command, *more in (["verify"], ["config"], ["restore", "x"], ["compare", "d.img"])
    ),
    *((5, ["run", "d.img", what]) for what in TARGETS),
    *((5, ["restore", "a.vma", what]) for what in ("closed/x", "closed/", "read-only/", "closed/x.qcow2")),
    *((5, ["serve", "d.img", option, what]) for option, what in (("--socket", "closed/x"), ("--control", "d.img"))),
]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    made = tmp_path_factory.mktemp("closed")
    for name in ("d.img", "a.vma"):
        (made / name).write_bytes((folder / name).read_bytes())
    for name in ("closed.img", "closed.vma", "closed.qcow2"):
        (made / name).write_bytes((folder / "d.img").read_bytes())
        (made / name).chmod(0)
    for name, mode in (("closed", 0), ("read-only", 0o555), ("dir", 0o755)):
        (made / name).mkdir(mode=mode)
    (made / "loop").symlink_to("loop")
    return made


@pytest.mark.parametrize(
    ("code", "asked"), DENIED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_cannot_be_opened_is_told_by_its_side(closed: Path, code: int, asked: list[str], need) -> None:  # type: ignore[no-untyped-def]
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        need("setpriv")
        prefix = WITHOUT_OVERRIDES
    before = sorted(os.listdir(closed))
    done = subprocess.run(
        [*prefix, *PROGRAM, *asked], cwd=closed, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )
    outcome = Outcome(done.returncode, done.stdout.encode(), done.stderr)
    assert outcome.code == code and len(outcome.err.splitlines()) == 1 and outcome.err.startswith("pybackup: "), outcome
    assert sorted(os.listdir(closed)) == before


def test_a_map_fits_a_narrow_terminal(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "long.img").write_bytes(bytes(100 * 65_536))
    assert pybackup("run", "long.img", "a.vma", cwd=tmp_path).code == 0
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(theirs, "wb", buffering=0) as out:
        narrow = {**os.environ, "COLUMNS": "60"}
        assert pybackup("info", "--map", "a.vma", cwd=tmp_path, stdout=out, env=narrow).code == 0
        drawn = [line for line in terminal.read(65_536).decode().splitlines() if line.startswith("  |")]
    assert [len(line) for line in drawn] == [60, 48]
