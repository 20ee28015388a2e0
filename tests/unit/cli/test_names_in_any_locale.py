"""A name survives whatever locale an archive is made or read in, and steers no terminal."""

from __future__ import annotations

import os
import random
from pathlib import Path

import foreign_vma
import pytest
from command_line import pybackup

ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UTF8 = {**os.environ, "LC_ALL": "C.UTF-8"}
DISK = random.Random(4).randbytes(70_000)


@pytest.mark.parametrize("made, read", [(ASCII, UTF8), (UTF8, ASCII), (ASCII, ASCII)], ids=["a-u", "u-a", "a-a"])
def test_names_of_files_in_any_locale(made: dict[str, str], read: dict[str, str], tmp_path: Path) -> None:
    names = [b"gr\xc3\xb6\xc3\x9fe", b"latin-\xf6", b"\xf0\x9f\x92\xbe"]
    sources = [tmp_path / os.fsdecode(name + b".raw") for name in names]
    for source in sources:
        source.write_bytes(DISK)
    archive, config = tmp_path / "o.vma", tmp_path / "größe.conf"
    config.write_bytes(b"x")
    done = pybackup("run", "--verify", "-c", config, *sources, archive, env=made)
    assert done.code == 0, done.err
    done = pybackup("verify", archive, env=read)
    assert done.code == 0, done.err
    assert pybackup("compare", archive, *sources, env=read).code == 0
    assert pybackup("info", archive, env=read).code == 0
    told = [one["name"] for one in pybackup("info", "--json", archive, env=read).json["drives"]]
    assert told == ["größe", "latin-%F6", "💾"]
    (tmp_path / "back").mkdir()
    done = pybackup("restore", archive, tmp_path / "back", "--with-config", env=read)
    assert done.code == 0, done.err
    restored = sorted(os.listdir(os.fsencode(tmp_path / "back")))
    assert restored == sorted([names[0] + b".conf", names[0] + b".raw", b"latin-%F6.raw", names[2] + b".raw"])
    assert pybackup("restore", archive, tmp_path / "one", "--drive", "größe", env=read).code == 0


def test_names_of_another_program_are_escaped_on_a_terminal(tmp_path: Path) -> None:
    archive = tmp_path / "x.vma"
    archive.write_bytes(foreign_vma.write({"evil\u202egnp": DISK[:512]}))
    for arguments in (["info"], ["restore", tmp_path / "y", "--drive", "nothing"], ["compare", archive, "b=/dev/null"]):
        command, *rest = arguments if arguments[0] != "compare" else ["compare", "b=/dev/null"]
        done = pybackup(command, archive, *rest)
        assert "\u202e" not in done.out.decode() + done.err
        assert r"evil\u202egnp" in done.out.decode() + done.err
    assert pybackup("restore", archive, tmp_path / "z", "--drive", r"evil\u202egnp").code == 0
