"""bash, zsh and fish load the scripts that `pybackup completion` prints, and complete with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import pybackup
from conftest import need

# COMPREPLY is where a completion function of bash leaves what it found; $_comps is what zsh knows to complete.
IN_BASH = "COMP_WORDS=(pybackup re); COMP_CWORD=1; _pybackup_completion pybackup; echo ${COMPREPLY[@]}"
SHELLS = {
    "bash": (["--norc", "-c", f"source ./script; {IN_BASH}"], "restore\n"),
    "zsh": (
        ["-f", "-c", "autoload -Uz compinit; compinit -u -D; source ./script; print $_comps[pybackup]"],
        "_pybackup_completion\n",
    ),
    "fish": (["--no-config", "-c", "source ./script; complete -C 'pybackup re'"], "restore\t"),
}


def environment(**more: str) -> dict[str, str]:
    """Where the shells find `pybackup`: beside the Python that runs the tests."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **more}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_loads_the_script(shell: str, tmp_path: Path) -> None:
    need(shell)
    (tmp_path / "script").write_bytes(pybackup("completion", shell).out)
    arguments, expected = SHELLS[shell]
    done = subprocess.run(
        [shell, *arguments],
        capture_output=True,
        text=True,
        env=environment(HOME=str(tmp_path)),
        cwd=tmp_path,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith(expected)


@pytest.mark.parametrize(
    "line", ["run", "run a.img", "restore", "restore a.vma", "verify", "info", "config", "compare"]
)
def test_file_names_are_completed(line: str) -> None:
    words = ["pybackup", *line.split(), "disk"]
    asked = {"_PYBACKUP_COMPLETE": "bash_complete", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    assert pybackup(env=environment(**asked)).out == b"file,disk\n"


def test_file_names_behind_a_drive_name_are_completed(tmp_path: Path) -> None:
    for name in ("disk 1.img", "disk2.img", "other"):
        (tmp_path / name).touch()
    asked = {"COMP_WORDS": "pybackup run scsi0=disk", "COMP_CWORD": "scsi0=disk", "_PYBACKUP_COMPLETE": "fish_complete"}
    found = pybackup(env=environment(**asked), cwd=tmp_path).out.decode()
    assert "scsi0=disk 1.img" in found and "scsi0=disk2.img" in found and "other" not in found


def completed(shell: str, words: str, current: str, folder: Path) -> list[str]:
    """What a shell is told; bash takes the words apart at =, and asks with the number of the last."""
    if shell == "bash":
        split = [part for word in [*words.split(), current] for part in re.split("(=)", word) if part or not word]
        asked = {"COMP_WORDS": "\n".join(split), "COMP_CWORD": str(len(split) - 1)}
    elif shell == "zsh":
        asked = {"COMP_WORDS": f"{words} {current}", "COMP_CWORD": str(len(words.split()))}
    else:
        asked = {"COMP_WORDS": f"{words} {current}", "COMP_CWORD": current}
    out = pybackup(env=environment(**asked, _PYBACKUP_COMPLETE=f"{shell}_complete"), cwd=folder).out.decode()
    lines = out.splitlines()
    return lines[1::3] if shell == "zsh" else [re.split("[,\t]", line)[1] for line in lines if line]


@pytest.mark.parametrize("shell", SHELLS)
def test_values_behind_an_option_are_completed(shell: str, tmp_path: Path) -> None:
    before = "" if shell == "bash" else "--progress="
    assert completed(shell, "pybackup run", "--progress=pl", tmp_path) == [f"{before}plain"]
    assert f"{before}json" in completed(shell, "pybackup run", "--progress=", tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_names_in_an_archive_are_completed(shell: str, tmp_path: Path) -> None:
    for name in ("scsi0", "scsi1", "vm.conf"):
        (tmp_path / name).write_bytes(b"x" * 512)
    assert pybackup("run", "scsi0", "scsi1", "-c", "vm.conf", "a.vma", cwd=tmp_path).code == 0
    assert completed(shell, "pybackup restore a.vma --drive", "s", tmp_path) == ["scsi0", "scsi1"]
    assert completed(shell, "pybackup restore a.vma --to", "scsi1", tmp_path) == ["scsi1="]
    assert completed(shell, "pybackup compare a.vma --drive", "scsi1", tmp_path) == ["scsi1"]
    assert completed(shell, "pybackup config a.vma", "v", tmp_path) == ["vm.conf"]
    assert completed(shell, "pybackup restore nosuch.vma --drive", "s", tmp_path) == []


def test_descriptions_in_fish_keep_what_is_behind_a_comma(tmp_path: Path) -> None:
    need("fish")
    (tmp_path / "script").write_bytes(pybackup("completion", "fish").out)
    done = subprocess.run(
        ["fish", "--no-config", "-c", "source ./script; complete -C 'pybackup serve --cop'"],
        capture_output=True,
        text=True,
        env=environment(HOME=str(tmp_path)),
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.startswith("--copy-on-read\t")
    done = subprocess.run(
        ["fish", "--no-config", "-c", "source ./script; complete -C 'pybackup ser'"],
        capture_output=True,
        text=True,
        env=environment(HOME=str(tmp_path)),
        cwd=tmp_path,
        check=True,
    )
    assert "Offer disks in use, or what an archive holds" in done.stdout
