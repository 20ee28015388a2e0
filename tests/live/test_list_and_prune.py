"""`list` and `prune`: as their user sees them, on folders and at stores."""

from __future__ import annotations

import os
import pty
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import PROGRAM, Outcome, listing, pybackup
from faulty_proxy import FaultyProxy
from nightly_archives import DAY, NIGHT, archive_bytes, nights
from object_store import Store, moto_server
from sftp_server import PASSWORD, Files, sftp_server

NOW = ("--time", str(NIGHT + 30 * DAY))
UTC = {**os.environ, "TZ": "UTC"}


def run(*arguments: str | Path, code: int = 0, **options: str) -> Outcome:
    done = pybackup(*arguments, env={**UTC, **options})
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    return done


def test_a_folder_is_listed(tmp_path: Path) -> None:
    nights(tmp_path, 4, full_every=3)
    nights(tmp_path, 1, full_every=1, name="db")
    out = run("list", tmp_path).out.decode()
    assert out.splitlines()[0].startswith("db-*.vma.zst: 1 archive, ")
    assert out.splitlines()[4].endswith("back to 2025-11-27 02:00 (3 days before the newest)")
    assert "web-20251129T020000.vma.zst  2025-11-29 02:00  delta 2" in out
    assert out.splitlines()[-1].startswith(f"{tmp_path}: 5 archives of 2 series, ")
    found = run("list", "--json", tmp_path).json
    assert [one["needed_by"] for one in found["archives"]] == [0, 0, 1, 0, 2]
    assert [one["chain"] for one in found["archives"]] == [0, 2, 1, 0, 0]
    assert found["archives"][1]["parent_name"] == "web-20251128T020000.vma.zst"
    assert found["archives"][1]["parent"] == found["archives"][2]["uuid"]
    assert found["archives"][0]["drives"] == [{"name": "web", "size": 262144, "stored": 65536, "way": None}]
    assert [one["series"] for one in found["series"]] == ["db-*.vma.zst", "web-*.vma.zst"]
    assert found["series"][1]["oldest"] == NIGHT and found["series"][1]["newest"] == NIGHT + 3 * DAY
    assert found["unreadable"] == []


def test_what_is_broken_is_told_and_the_exit_code_says_so(tmp_path: Path) -> None:
    made = nights(tmp_path, 3, full_every=3)
    Path(made[1].name).unlink()
    (tmp_path / "bad.vma.zst").write_bytes(b"no archive")
    (tmp_path / "dump.vma.lzo").write_bytes(b"\x89LZO\0\r\n\x1a\n")
    done = run("list", tmp_path, code=4)
    assert "delta 2, broken" in done.out.decode()
    assert "is broken: its parent is missing: uuid " in done.out.decode()
    assert "then called web-20251128T020000.vma.zst" in done.out.decode()
    assert "it is compressed with lzop" in done.out.decode()
    found = run("list", "--json", tmp_path, code=4).json
    assert [(one["name"], one["foreign"]) for one in found["unreadable"]] == [
        ("bad.vma.zst", False),
        ("dump.vma.lzo", True),
    ]
    (tmp_path / "bad.vma.zst").unlink()
    Path(made[2].name).unlink()
    run("list", tmp_path)


def test_places_that_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for what, code, told in (
        ("file", 2, "is no folder; name the one that the archives lie in"),
        ("nothing", 4, "cannot list"),
        ("https://127.0.0.1/x", 2, "a web server does not tell"),
    ):
        place = what if "://" in what else str(tmp_path / what)
        done = run("list", place, code=code)
        assert told in done.err and len(done.err.splitlines()) == 1
    assert run("list", tmp_path).out.decode() == f"{tmp_path}: no archives\n"


def test_prune_does_what_it_has_said(tmp_path: Path) -> None:
    nights(tmp_path, 20, full_every=1)
    before = listing(tmp_path)
    rules = ("--keep-daily", "3", "--keep-weekly", "2", *NOW)
    dry = run("prune", "--dry-run", "--json", *rules, tmp_path).json
    assert listing(tmp_path) == before and dry["dry_run"] and dry["removed"] == 0
    text = run("prune", "-n", *rules, tmp_path).out.decode()
    assert text.splitlines()[-1].startswith("would remove 15 archives (")
    assert "keep    weekly 2025-W49" in text
    done = run("prune", *rules, tmp_path)
    assert done.out.decode().splitlines()[-1].startswith("removed 15 archives (") and done.err == ""
    assert sorted(listing(tmp_path)) == sorted(one["name"] for one in dry["archives"] if one["fate"] == "keep")
    again = run("prune", "--json", *rules, tmp_path).json
    assert again["removed"] == 0 and again["error"] is None
    assert run("prune", "-q", *rules, tmp_path) == (0, b"", "")
    (tmp_path / "empty").mkdir()
    assert run("prune", *rules, tmp_path / "empty").out.decode().startswith("removed 0 archives")


def test_prune_tells_what_stays_for_others_only(tmp_path: Path) -> None:
    nights(tmp_path, 3, full_every=3)
    text = run("prune", "-n", "--keep-last", "1", *NOW, tmp_path).out.decode()
    assert text.endswith(", 2 of them only because others need them\n")
    text = run("prune", "-n", "--keep-last", "3", *NOW, tmp_path).out.decode()
    assert "3 archives stay" in text and "of them" not in text


def test_prune_refuses(tmp_path: Path) -> None:
    nights(tmp_path, 2, full_every=1)
    assert "no rule says what to keep: --keep-last" in run("prune", tmp_path, code=2).err
    assert "no rule says" in run("prune", "--keep-last", "0", tmp_path, code=2).err
    (tmp_path / "bad.vma.zst").write_bytes(b"no archive")
    done = run("prune", "--keep-last", "1", tmp_path, code=4)
    assert "nothing is removed" in done.err and not done.out
    assert "; pybackup prune --ignore bad.vma.zst goes on" in done.err
    assert len(listing(tmp_path)) == 3
    run("prune", "--keep-last", "1", "--ignore", "bad.vma.zst", tmp_path)
    assert sorted(listing(tmp_path)) == ["bad.vma.zst", "web-20251128T020000.vma.zst"]


def test_the_time_zone_decides_which_day_it_is(tmp_path: Path) -> None:
    # 02:00 UTC and 23:00 UTC: in Auckland, 13 hours before, these are two days.
    nights(tmp_path, 1, full_every=1)
    nights(tmp_path, 1, full_every=1, begin=NIGHT + 21 * 3600)
    for zone, removed in (("Pacific/Auckland", 0), ("UTC", 1)):
        found = run("prune", "-n", "--json", "--keep-daily", "2", *NOW, tmp_path, TZ=zone).json
        assert [one["fate"] for one in found["archives"]].count("remove") == removed


def on_a_terminal(columns: int, *arguments: str) -> list[str]:
    """The lines that a terminal of so many columns shows."""
    master, slave = pty.openpty()
    pid = os.fork()
    if not pid:
        os.login_tty(slave) if hasattr(os, "login_tty") else os.dup2(slave, 1)
        os.environ.update({"COLUMNS": str(columns), "TERM": "xterm", "TZ": "UTC"})
        os.execv(PROGRAM[0], [*PROGRAM, *arguments])
    os.close(slave)
    shown = b""
    try:
        while more := os.read(master, 4096):
            shown += more
    except OSError:
        pass
    os.close(master)
    assert os.waitpid(pid, 0)[1] == 0
    return re.sub("\x1b\\[[0-9;]*m", "", shown.decode()).splitlines()


@pytest.mark.parametrize("columns", [78, 110])
def test_on_a_terminal_a_table_fits_its_width(tmp_path: Path, columns: int) -> None:
    nights(tmp_path, 3, full_every=3)
    for command, headers in (
        (("list",), ("archive", "made", "kind", "size", "needed by")),
        (("prune", "-n", "--keep-last", "1", *NOW), ("archive", "size", "why")),
    ):
        lines = on_a_terminal(columns, *command, str(tmp_path))
        assert all(header in lines[1] for header in headers)
        assert ("made" in lines[1] and "kind" in lines[1]) or columns == 78
        table = [line for line in lines if "web-2025" in line and str(tmp_path) not in line]
        assert max(map(len, table)) <= columns
        assert [line.split()[0] for line in table if line.startswith("web-")] == sorted(
            path.name for path in tmp_path.glob("web-*")
        ), "no name is cut"
        assert "…" not in "".join(lines)


def test_on_a_terminal_no_reason_is_cut(tmp_path: Path) -> None:
    nights(tmp_path, 3, full_every=3)
    words = " ".join(on_a_terminal(60, "prune", "-n", "--keep-last", "1", *NOW, str(tmp_path))).split()
    assert words.count("needed") == 2 and words.count("newest") == 1


# -- at stores --


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with moto_server() as port, FaultyProxy(port).running() as proxy:
        store = Store(port, proxy, tmp_path_factory.mktemp("store"), "bucket")
        store.environment["TZ"] = "UTC"
        yield store


def test_a_prefix_of_a_bucket(store: Store, tmp_path: Path) -> None:
    made = nights(tmp_path, 4, full_every=2)
    for one in made:
        store.put(f"web/{Path(one.name).name}", Path(one.name).read_bytes())
    store.put("web/notes.txt", b"mine")
    store.put("web/plain.vma", archive_bytes(NIGHT))
    store.put("other/x.vma.zst", archive_bytes(NIGHT))
    found = store.run("list", "--json", "s3://bucket/web").json
    assert [one["name"] for one in found["archives"]] == [
        *(Path(one.name).name for one in made[:0:-1]),
        "plain.vma",
        Path(made[0].name).name,
    ]
    assert [one["chain"] for one in found["archives"]] == [1, 0, 1, 0, 0] and found["unreadable"] == []
    assert found["archives"][0]["archive"] == f"s3://bucket/web/{Path(made[3].name).name}"
    # All of it has come there just now.
    rules = ("prune", "--json", "--keep-last", "1")
    assert store.run(*rules, "s3://bucket/web").json["removed"] == 0
    later = ("--time", str(int(time.time()) + 2 * DAY))
    dry = store.run(*rules, *later, "--dry-run", "s3://bucket/web").json
    assert [one["fate"] for one in dry["archives"]] == ["keep", "keep", "remove", "keep", "remove"]
    assert store.run(*rules, *later, "s3://bucket/web").json["removed"] == 2
    assert sorted(store.keys()) == [
        "other/x.vma.zst",
        "web/notes.txt",
        "web/plain.vma",
        *(f"web/{Path(one.name).name}" for one in made[2:]),
    ]


def test_a_folder_over_sftp(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / ".ssh").mkdir()
    made = nights(tmp_path / "remote", 3, full_every=3)
    with sftp_server(tmp_path / "remote") as files:
        (tmp_path / ".ssh" / "known_hosts").write_text(files.known_hosts())
        environment = {**UTC, "HOME": str(tmp_path), "PYBACKUP_PATIENCE": "8"}
        environment.pop("SSH_AUTH_SOCK", None)
        url = _url(files)
        found = pybackup("list", "--json", url, env=environment)
        assert found.code == 0 and [one["chain"] for one in found.json["archives"]] == [2, 1, 0]
        nights(tmp_path / "remote", 1, full_every=1, begin=NIGHT + 9 * DAY)
        later = ("--time", str(int(time.time()) + 2 * DAY))
        done = pybackup("prune", "-q", "--keep-last", "1", *later, url, env=environment)
        assert done == (0, b"", "")
    assert [path.name for path in (tmp_path / "remote").iterdir()] == ["web-20251206T020000.vma.zst"]
    assert len(made) == 3


def _url(files: Files) -> str:
    return f"sftp://user:{PASSWORD}@127.0.0.1:{files.port}/"
