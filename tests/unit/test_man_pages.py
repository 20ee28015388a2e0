"""The manual pages are those that the commands make, roff understands them, and what they name is there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from manual_pages import MAN, command_lines, examples, options_of, unknown_words, written

PAGES = sorted(path for section in "157" for path in MAN.glob(f"*.{section}"))
BY_HAND = [path for path in PAGES if path.suffix != ".1"]
OTHERS = {
    *("age", "crontab", "qemu-img", "qemu-nbd", "strftime", "virsh", "zstd"),
    *("systemd.service", "systemd.socket", "systemd.timer"),
}
"""Pages of other programs to which ours refer."""


def generator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(MAN)
    spec = importlib.util.spec_from_file_location("generate", MAN / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generator(monkeypatch).pages()
    found = {path.name: path.read_text() for path in MAN.glob("*.1")}
    assert found == expected, "run `make man`"


def test_every_page_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    guides = {name.replace("/", ".") for name in generator(monkeypatch).GUIDES}
    assert {path.name for path in BY_HAND} == guides
    assert len(guides) == 13


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_roff_has_nothing_to_warn_of_and_80_columns_are_enough(path: Path, need) -> None:  # type: ignore[no-untyped-def]
    need("man")
    outcome = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(path)],
        capture_output=True,
        text=True,
        env={"MANWIDTH": "80", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        check=True,
    )
    assert outcome.stderr == ""
    # Bold is a letter struck over itself, where man does not do it with escape sequences.
    shown = re.sub(".\b|\x1b\\[[0-9;]*m", "", outcome.stdout)
    assert "NAME" in shown
    assert [line for line in shown.split("\n") if len(line) > 80] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_sections(path: Path) -> None:
    titles = re.findall(r"^\.SH (.*)$", path.read_text(), re.MULTILINE)
    assert titles[0] == "NAME" and titles[-1] == "SEE ALSO"
    assert "EXAMPLES" in titles
    known = ["EXAMPLES", "ENVIRONMENT", "FILES", "EXIT STATUS", "SEE ALSO"]
    assert [title for title in titles if title in known] == [title for title in known if title in titles]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_that_are_referred_to_are_there(path: Path) -> None:
    text = written(re.sub(r"^\.nf\n.*?^\.fi$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE))
    found = set(re.findall(r"([a-z][a-z0-9.-]*)\((\d)\)", text))
    ours = {(page.stem, page.suffix[1:]) for page in PAGES}
    assert {one for one in found if one[0].startswith("pybackup")} <= ours
    assert {name for name, _ in found if not name.startswith("pybackup")} <= OTHERS
    assert found


def test_the_first_page_lists_all_others() -> None:
    text = written((MAN / "pybackup.1").read_text())
    assert [path.name for path in PAGES if f"{path.stem}({path.suffix[1:]})" not in text] == ["pybackup.1"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_and_options_of_examples_are_there(path: Path) -> None:
    lines = command_lines(path)
    if not lines:
        assert path.name in ("pybackup-api.7", "pybackup-job.5")
        return
    assert unknown_words(lines) == []
    assert any("pybackup" in line for line in lines)


def test_the_job_page_explains_every_option_of_run() -> None:
    text = written((MAN / "pybackup-job.5").read_text())
    keys = {name[2:] for name in options_of("run") if name.startswith("--")} - {"help", "job", "forget"}
    tags = re.findall(r"^\.TP\n(.*)$", (MAN / "pybackup-job.5").read_text(), re.MULTILINE)
    explained = {key for tag in tags for key in re.findall(r"[a-z-]+", written(tag)) if "/" not in tag}
    assert explained - {"sources", "archive"} == keys
    assert "sources" in text


def test_examples_are_read_as_they_are_written() -> None:
    (code,) = (block for block in examples(MAN / "pybackup-control.7") if block.startswith("import"))
    assert '\'{"command": "status"}\\n\'' in code
    compile(code, "example", "exec")
