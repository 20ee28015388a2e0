"""bash, zsh and fish load the scripts that `pybackup completion` prints, and complete with them."""

from __future__ import annotations

import os
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
