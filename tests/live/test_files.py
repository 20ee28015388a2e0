"""`pybackup files` with a double of guestfish, which checks the export and says what guestfish says.

The real one, which takes minutes where there is no KVM, was tried by hand.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, pybackup

GUESTFISH = """#!{python}
import json, os, sys
with open({log!r}, "w") as log:
    json.dump([sys.argv[1:], os.environ.get("LIBGUESTFS_BACKEND")], log)
socket = sys.argv[sys.argv.index("--add") + 1].partition("?socket=")[2]
assert os.path.exists(socket)
words = sys.argv[sys.argv.index("--") + 1:]
if words[0] == "run":
    print("/dev/sda1: ext4\\n/dev/vg/root: xfs")
elif words[0] == "ls0":
    sys.stdout.write("b\\0a\\x1b[31m\\0")
elif words[0] == "ll":
    print("-rw-r--r--  1 0 0 3 Jan  1 00:00 a\\x1b[31m")
elif words[1] == "/gone":
    sys.exit("libguestfs: error: copy_out: /gone: No such file or directory")
else:
    open(os.path.join(words[2], os.path.basename(words[1])), "w").write("content")
"""


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """Runs the command on an archive of two drives; what guestfish was asked is in ``asked``."""
    (tmp_path / "bin").mkdir()
    log, program = tmp_path / "log.json", tmp_path / "bin" / "guestfish"
    program.write_text(GUESTFISH.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    for name in ("a", "b"):
        (tmp_path / f"{name}.img").write_bytes(b"x" * 100_000)
    archive = tmp_path / "vm.vma"
    assert pybackup("run", tmp_path / "a.img", f"b-1={tmp_path / 'b.img'}", archive).code == 0
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment.pop("LIBGUESTFS_BACKEND", None)

    def run(*arguments: str | Path) -> Outcome:
        log.unlink(missing_ok=True)
        done = pybackup("files", archive, *arguments, env=environment)
        run.asked = json.loads(log.read_text()) if log.exists() else None  # type: ignore[attr-defined]
        return done

    return run


def test_filesystems_are_told(files: Any) -> None:
    assert files().out == b"/dev/sda1  ext4\n/dev/vg/root  xfs\n"
    words, backend = files.asked
    assert words[:3] == ["--ro", "--format=raw", "--add"]
    assert words[3].startswith("nbd:///a?socket=/") and words[5].startswith("nbd:///b-1?socket=/")
    assert (words[4], words[6:], backend) == ("--add", ["--", "run", ":", "list-filesystems"], "direct")
    assert files("--json").json["filesystems"][1] == {"device": "/dev/vg/root", "type": "xfs"}


def test_files_are_listed(files: Any) -> None:
    done = files("/etc", "--drive", "a")
    assert (done.code, done.out) == (0, b"-rw-r--r--  1 0 0 3 Jan  1 00:00 a\\x1b[31m\n"), done.err
    assert files.asked[0][4:] == ["--inspector", "--", "ll", "/etc"]
    assert files("/etc", "--json").json == {"path": "/etc", "names": ["a\x1b[31m", "b"]}


def test_a_file_is_copied_and_nothing_replaced(files: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = files("/etc/fstab", "--to", tmp_path / "out", "--device", "/dev/sda1")
    assert (done.code, done.out.decode()) == (0, f"{tmp_path}/out/fstab\n"), done.err
    assert "--mount" in files.asked[0] and "/dev/sda1:/" in files.asked[0]
    assert (tmp_path / "out" / "fstab").read_text() == "content"
    again = files("/etc/fstab", "--to", tmp_path / "out")
    assert (again.code, "exists already" in again.err, files.asked) == (5, True, None)
    failed = files("/gone", "--to", tmp_path / "out")
    assert (failed.code, failed.err) == (
        1,
        "pybackup: guestfish has failed: copy_out: /gone: No such file or directory\n",
    )
    assert os.listdir(tmp_path / "out") == ["fstab"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["etc"], "begins with a slash"),
        (["/", "--device", "sda1"], "no device of a guest"),
        (["/", "--to", "."], "name a file or a folder"),
        (["/etc", "--drive", "c"], "has no drive 'c'; it has a, b-1"),
        (["--to", "."], "--to DIR goes with the PATH"),
        (["--device", "/dev/sda"], "--device goes with a PATH"),
    ],
)
def test_what_makes_no_sense(files: Any, arguments: list[str], sentence: str) -> None:
    done = files(*arguments)
    assert (done.code, sentence in done.err, files.asked) == (2, True, None), done.err


def test_without_guestfish_the_package_is_named(files: Any, tmp_path: Path) -> None:
    (tmp_path / "bin" / "guestfish").unlink()
    done = pybackup("files", tmp_path / "vm.vma", env={**os.environ, "PATH": str(tmp_path / "bin")})
    assert (done.code, "Debian's package libguestfs-tools has it" in done.err) == (2, True), done.err
