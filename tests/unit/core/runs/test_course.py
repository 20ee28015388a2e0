"""The course of a backup, for users of the library: what the command line is spared to check, it checks itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from pybackup.core.archive.create import ArchiveOptions
from pybackup.core.archive.facts import archive_facts
from pybackup.core.endpoints.sources import SourceOptions
from pybackup.core.errors import RequestError, SourceError, TargetError
from pybackup.core.places.kinds import LocalPath
from pybackup.core.places.parsing import NEW_ARCHIVE
from pybackup.core.runs.at_rest import DisksAtRest
from pybackup.core.runs.course import BackupRequest, backup, read_config
from pybackup.core.runs.listener import Listener

DISK = b"disk" * 16384 + bytes(1 << 16)


class Source(NamedTuple):
    name: str | None
    what: LocalPath


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.img").write_bytes(DISK)
    (tmp_path / "b.img").write_bytes(DISK[: 1 << 16])
    (tmp_path / "x.conf").write_text("cores: 1\n")
    return tmp_path


def asked(
    archive: str, *, configs: Sequence[Source] = (), verify: bool = False, replace: bool = False
) -> BackupRequest:
    options = ArchiveOptions(bytes(range(16)), 1)
    place = NEW_ARCHIVE.parse(archive)
    return BackupRequest(place, options, configs=configs, verify=verify, replace=replace, tool="a test")


def run(request: BackupRequest, *sources: Source, listener: Listener | None = None) -> None:
    async def whole() -> None:
        way = DisksAtRest(sources, SourceOptions())
        async with backup(way, request, listener=listener) as job:
            await job.run()

    asyncio.run(whole())


def test_disks_and_configurations_become_an_archive(folder: Path) -> None:
    configs = [Source("vm.conf", LocalPath("x.conf"))]
    sources = [Source(None, LocalPath("a.img")), Source("data", LocalPath("b.img"))]
    run(asked("out.vma.zst", configs=configs, verify=True), *sources)
    facts = archive_facts(LocalPath("out.vma.zst"))
    assert [(one.name, one.size) for one in facts.header.drives] == [("a", len(DISK)), ("data", 1 << 16)]
    assert facts.header.configs == (("vm.conf", b"cores: 1\n"),)


def test_the_archive_is_named_when_the_drives_are_known(folder: Path) -> None:
    async def whole() -> None:
        way = DisksAtRest([Source(None, LocalPath("a.img"))], SourceOptions())
        async with backup(way, asked("unused"), named=lambda names: LocalPath(f"of-{'-'.join(names)}.vma")) as job:
            await job.run()

    asyncio.run(whole())
    assert (folder / "of-a.vma").exists() and not (folder / "unused").exists()


@pytest.mark.parametrize("archive", ["a.img", "./a.img", "link", "x.conf"])
def test_no_archive_replaces_what_it_is_made_of(folder: Path, archive: str) -> None:
    (folder / "link").symlink_to("a.img")
    with pytest.raises(RequestError, match="would be replaced by the archive made of it"):
        run(asked(archive, configs=[Source(None, LocalPath("x.conf"))], replace=True), Source(None, LocalPath("a.img")))
    assert (folder / "a.img").read_bytes() == DISK


@pytest.mark.parametrize("archive", ["-", "|cat"])
def test_what_is_no_file_cannot_be_read_back_before_it_has_its_name(archive: str) -> None:
    with pytest.raises(RequestError, match="cannot be read back"):
        run(asked(archive, verify=True), Source(None, LocalPath("a.img")))


def test_who_listens_is_told(folder: Path) -> None:
    told: list[str] = []
    listener = Listener(lambda one: told.append(f"warning: {one}"), lambda one: told.append(f"note: {one}"))
    listener.tell(["w1", "w2"], ["n"])
    assert told == ["warning: w1", "warning: w2", "note: n"]


def test_nothing_stays_open_or_behind_when_it_fails(folder: Path) -> None:
    (folder / "out.vma").write_text("no archive")
    with pytest.raises(TargetError):
        run(asked("out.vma"), Source(None, LocalPath("a.img")))
    with pytest.raises(SourceError, match="missing"):
        run(asked("new.vma"), Source(None, LocalPath("a.img")), Source(None, LocalPath("missing")))
    assert sorted(one.name for one in folder.iterdir()) == ["a.img", "b.img", "out.vma", "x.conf"]


def test_a_configuration_that_cannot_be_read() -> None:
    with pytest.raises(SourceError, match="cannot read the configuration nowhere"):
        read_config(Source(None, LocalPath("nowhere")))
    assert read_config(Source(None, LocalPath("x.conf"))) == ("x.conf", b"cores: 1\n")
