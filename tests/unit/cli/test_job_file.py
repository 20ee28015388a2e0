"""Job files: every key is an option of the command, and every mistake is told with key and file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from manual_pages import jobs

from pybackup.cli.job_file import or_from_job_file, read_job_file
from pybackup.cli.params import Duration, Named, NamedPath, Size, Whole
from pybackup.core.errors import RequestError, SourceError


@click.command()
@click.argument("sources", type=NamedPath(), nargs=-1, callback=or_from_job_file)
@click.argument("archive", type=click.Path())
@click.option("-c", "--config", "configs", type=NamedPath(), multiple=True)
@click.option("--level", type=Whole(1, 22), default=3)
@click.option("--size", type=Size(1), default=None)
@click.option("--lock-wait", type=Duration(), default="0")
@click.option("--compress", type=click.Choice(["zstd", "none"]), default="zstd")
@click.option("--json", "as_json", is_flag=True)
@click.option("--trace", default="", is_eager=True)
@click.option("--job", type=click.Path(), is_eager=True, callback=read_job_file)
def command(**given: Any) -> dict[str, Any]:
    return given


def called(folder: Path, toml: str, *arguments: str) -> dict[str, Any]:
    (folder / "vm1.toml").write_text(toml)
    given: dict[str, Any] = command.main(["--job", f"{folder}/vm1.toml", *arguments], standalone_mode=False)
    return given


def test_the_file_says_everything(tmp_path: Path) -> None:
    given = called(
        tmp_path,
        """
        sources = {scsi0 = "/dev/vg/a", scsi1 = "b=c.img"}
        archive = "/backups/{name}.vma.zst"
        config = {"qemu-server.conf" = "/etc/pve/100.conf"}
        level = 7
        size = "1.5K"
        lock-wait = "10m"
        compress = "none"
        json = true
        trace = "job.*"
        """,
    )
    assert given.pop("job").endswith("vm1.toml")
    assert given == {
        "sources": (Named("scsi0", "/dev/vg/a"), Named("scsi1", "b=c.img")),
        "archive": "/backups/{name}.vma.zst",
        "configs": (Named("qemu-server.conf", "/etc/pve/100.conf"),),
        "level": 7,
        "size": 1536,
        "lock_wait": 600.0,
        "compress": "none",
        "as_json": True,
        "trace": "job.*",
    }


def test_the_command_line_comes_first(tmp_path: Path) -> None:
    toml = 'sources = ["a=x.img", "y.img"]\narchive = "from-file"\nconfig = "a.conf"\nlevel = 7\nlock-wait = 1.5'
    given = called(tmp_path, toml)
    assert given["sources"] == (Named("a", "x.img"), Named(None, "y.img"))
    assert (given["archive"], given["configs"], given["lock_wait"]) == ("from-file", (Named(None, "a.conf"),), 1.5)
    given = called(tmp_path, toml, "other", "--level", "2", "-c", "b.conf", "-c", "c.conf")
    assert given["sources"] == (Named("a", "x.img"), Named(None, "y.img"))
    assert (given["archive"], given["level"]) == ("other", 2)
    assert given["configs"] == (Named(None, "b.conf"), Named(None, "c.conf"))
    assert called(tmp_path, toml, "z.img", "other")["sources"] == (Named(None, "z.img"),)


def test_what_the_file_leaves_out_must_come_from_the_command_line(tmp_path: Path) -> None:
    assert called(tmp_path, "", "a", "b")["sources"] == (Named(None, "a"),)
    with pytest.raises(click.MissingParameter):
        called(tmp_path, "level = 3")


@pytest.mark.parametrize(
    "toml, sentence",
    [
        ("levl = 3", "levl is no option; did you mean level?"),
        ("qqq = 3", "qqq is no option; there are archive, compress, config, json, level"),
        ('job = "x"', "job is no option"),
        ("help = true", "help is no option"),
        ("as_json = true", "as_json is no option"),
        ("lock_wait = 3", "did you mean lock-wait?"),
        ("[level]\na = 1", "level must be a number or a string"),
        ("level = true", "level must be a number or a string"),
        ("level = 99", "level: 99 is not in the range"),
        ("level = 2.5", "level: "),
        ("size = -5", "size: '-5' is not a size"),
        ("size = 0", "size: 0 is smaller than 1 bytes"),
        ("size = nan", "size: 'nan' is not a size"),
        ("lock-wait = 2026-01-01", "lock-wait must be a number or a string"),
        ('lock-wait = "soon"', "lock-wait: 'soon' is not a duration"),
        ('compress = "lzma"', "compress: 'lzma' is not one of"),
        ("compress = 3", "compress must be a string"),
        ('json = "yes"', "json must be true or false"),
        ("json = 1", "json must be true or false"),
        ("archive = 5", "archive must be a string"),
        ('archive = ["a"]', "archive must be a string"),
        ('archive = "a\\u0000b"', "archive must be a string"),
        ("sources = [1]", "sources must be a string, or several"),
        ("sources = {a = 1}", "sources.a must be a string, or several"),
        ('sources = {"a/b" = "x"}', "'a/b' cannot be a name"),
        ("sources = 5", "sources must be a string, or several"),
        ("level = ", "is not TOML"),
        ("a = 1\na = 2", "is not TOML"),
    ],
)
def test_mistakes(tmp_path: Path, toml: str, sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        called(tmp_path, toml, "a", "b")
    assert f"the job file {tmp_path}/vm1.toml" in str(refused.value)
    assert sentence in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("missing.toml", ""):
        with pytest.raises(SourceError, match="cannot read the job file"):
            command.main(["--job", str(tmp_path / name), "a", "b"], standalone_mode=False)
    (tmp_path / "bad.toml").write_bytes(b'a = "\xff"')
    with pytest.raises(RequestError, match="is not TOML"):
        command.main(["--job", str(tmp_path / "bad.toml"), "a", "b"], standalone_mode=False)


def test_every_option_of_run_can_stand_in_a_job_file(tmp_path: Path) -> None:
    from pybackup.cli.group import group
    from pybackup.cli.run import command as run

    with pytest.raises(RequestError) as refused:
        (tmp_path / "j.toml").write_text("qqqqq = 1")
        group.main(["run", "--job", str(tmp_path / "j.toml"), "a", "b"], standalone_mode=False)
    keys = str(refused.value).rpartition("there are ")[2].split(", ")
    options = [name[2:] for param in run.params for name in param.opts if name.startswith("--")]
    assert sorted(keys) == sorted([*set(options) - {"job", "forget"}, "sources", "archive"])
    assert len(options) > 20


def _job_of_the_readme() -> str:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    return readme.split("```toml\n", 1)[1].split("```", 1)[0]


@pytest.mark.parametrize("content", [_job_of_the_readme(), *jobs()])
def test_job_files_that_are_shown_are_some(content: str, tmp_path: Path) -> None:
    from pybackup.cli.job_file import _values
    from pybackup.cli.run import command as run

    (tmp_path / "vm1.toml").write_text(content)
    values = _values(str(tmp_path / "vm1.toml"), click.Context(run))
    assert values["sources"] and values["archive"]


def test_three_job_files_are_shown_and_the_first_is_that_of_the_readme(tmp_path: Path) -> None:
    from tomllib import loads

    first, *others = map(loads, jobs())
    assert len(others) == 2
    of_the_readme = loads(_job_of_the_readme())
    assert {key: first[key] for key in of_the_readme} == of_the_readme
