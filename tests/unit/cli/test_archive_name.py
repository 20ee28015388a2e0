"""Fields in the names of archives."""

from __future__ import annotations

import contextlib
import os
import string
import time
from collections.abc import Iterator
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.cli.archive_name import FIELDS, ArchiveName
from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import LocalPath
from pybackup.core.places.parsing import NEW_ARCHIVE

THE_UUID = UUID(int=5)
NAME = ArchiveName(["scsi0", "scsi1"], None, 1_700_000_000, THE_UUID.bytes)


def expand(template: str, name: ArchiveName = NAME) -> str:
    """The name that a template becomes, as it stands on the command line."""
    return name.expand(NEW_ARCHIVE.parse(template)).text


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place east of Greenwich."""
    monkeypatch.setenv("TZ", "XYZ-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    "template, name",
    [
        ("plain.vma.zst", "plain.vma.zst"),
        ("-", "-"),
        ("/b/{host}/{name}.vma", f"/b/{os.uname().nodename}/scsi0-scsi1.vma"),
        ("{job}", "scsi0-scsi1"),
        ("{now}", "20231115T001320"),
        ("{now:}", "20231115T001320"),
        ("{now:%Y%m%dT%H%M%S}", "20231115T001320"),
        ("{now:%H:%M %z}", "00:13 +0200"),
        ("{uuid}", str(THE_UUID)),
        ("{{name}} {{}}", "{name} {}"),
        ("|sh -c '{{ cat > {name}; }}'", "|sh -c '{ cat > scsi0-scsi1; }'"),
        ("s3://bucket/{now:%Y}", "s3://bucket/2023"),
    ],
)
def test_fields_are_replaced(template: str, name: str) -> None:
    assert expand(template) == name


def test_the_job_has_its_files_name() -> None:
    assert expand("{job}-{name}", ArchiveName(["a"], "vm1", 0, THE_UUID.bytes)) == "vm1-a"


@pytest.mark.parametrize(
    "template",
    [
        "{nam}",
        "{}",
        "{0}",
        "{name.__class__}",
        "{name[0]}",
        "{name!r}",
        "{now!s}",
        "{now:{name}}",
        "{",
        "}",
        "{name",
        "a}b",
    ],
)
def test_what_is_no_field_is_refused_and_the_fields_are_listed(template: str) -> None:
    with pytest.raises(RequestError) as refused:
        expand(template)
    assert all(f"{{{field}}}" in str(refused.value) for field in FIELDS)


def test_only_the_time_has_a_format() -> None:
    with pytest.raises(RequestError, match="has a format"):
        expand("{name:>20}")


@pytest.mark.parametrize("names", [["a/b"], [".."], ["."], [""], ["a\0b"]])
def test_no_value_leaves_the_folder(names: list[str]) -> None:
    with pytest.raises(RequestError, match="not part of a file's name"):
        expand("/backups/{name}/x", ArchiveName(names, None, 0, THE_UUID.bytes))


def test_a_time_with_a_slash_leaves_the_folder_too() -> None:
    with pytest.raises(RequestError, match="not part of a file's name"):
        expand("{now:%Y/%m}")
    assert expand("{now:%Y}/{now:%m}") == "2023/11"


@pytest.mark.parametrize("name", ["a b", "a;b", "$(x)", "a'b", '"', "-rf", "`x`", "ä"])
def test_what_a_shell_could_take_for_more_does_not_get_into_a_command(name: str) -> None:
    strange = ArchiveName([name], None, 0, THE_UUID.bytes)
    with pytest.raises(RequestError, match="not safe in a command or URL"):
        expand("|cat > {name}", strange)
    with pytest.raises(RequestError, match="not safe in a command or URL"):
        expand("s3://b/{name}", strange)
    assert expand("{name}.vma", strange) == f"{name}.vma"


def test_no_field_makes_another_kind_of_place() -> None:
    for name in ("-", "|cat", "s3://b"):
        with pytest.raises(RequestError) if "/" in name else contextlib.nullcontext():
            expanded = ArchiveName([name], None, 0, THE_UUID.bytes).expand(NEW_ARCHIVE.parse("{name}"))
            assert expanded == LocalPath(name)


def test_a_time_that_no_calendar_has() -> None:
    with pytest.raises(RequestError, match="cannot be written"):
        expand("{now}", ArchiveName(["a"], None, 1 << 60, THE_UUID.bytes))


@given(st.text(string.printable + "{}{}{}äß\0", max_size=40))
def test_any_text_is_expanded_or_refused(template: str) -> None:
    try:
        expand(template)
    except RequestError as refused:
        assert str(refused)
