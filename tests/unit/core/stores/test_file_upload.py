"""The filesystem in fsspec's memory, which lives as long as this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from archives import encode
from fsspec.implementations.memory import MemoryFileSystem

from pybackup.core.archive.create import open_sink
from pybackup.core.archive.drives import archive_header
from pybackup.core.archive.facts import archive_facts
from pybackup.core.archive.open import open_archive
from pybackup.core.errors import Advice, ArchiveError, RequestError, TargetError
from pybackup.core.jobs.walk import runs_of
from pybackup.core.places import parsing
from pybackup.core.places.kinds import StoreUrl
from pybackup.core.sinks import Sink

DISK = b"x" * 100_000 + bytes(200_000)
ARCHIVE = encode({"disk": DISK}, configs=[("a.conf", b"1")])
OLD = encode({"disk": DISK[:1000]})
URL = "memory://folder/x.vma"
PLACE = StoreUrl(URL)


@pytest.fixture(autouse=True)
def store() -> Iterator[dict[str, object]]:
    MemoryFileSystem.store.clear()
    yield MemoryFileSystem.store
    MemoryFileSystem.store.clear()


def write(content: bytes, *, replace: bool = False, end: str = "commit") -> None:
    async def write() -> None:
        sink: Sink = open_sink(PLACE, replace=replace)
        try:
            await sink.begin()
            for at in range(0, len(content), 50_000):
                await sink.write([content[at : at + 20_000], memoryview(content)[at + 20_000 : at + 50_000]])
            assert not replace or MemoryFileSystem().cat(URL) in (OLD, b"")
            if end == "commit":
                await sink.commit()
                return
            if end == "appear":
                MemoryFileSystem().pipe(URL, b"old")
                await sink.commit()
        except BaseException:
            await sink.abort()
            raise
        await sink.abort()

    asyncio.run(write())


def test_a_file_appears_when_it_is_whole() -> None:
    write(ARCHIVE)
    assert MemoryFileSystem().cat(URL) == ARCHIVE
    with open_archive(PLACE, threads=1) as stream:
        runs = [run for checked in stream for run in runs_of(checked.extent)]
    assert sum(run.length for run in runs) >= len(DISK)
    assert archive_facts(PLACE).header.drives[0].size == len(DISK)
    assert archive_header(PLACE).configs == (("a.conf", b"1"),)


def test_what_is_aborted_leaves_nothing(store: dict[str, object]) -> None:
    write(ARCHIVE, end="abort")
    assert not store


def test_a_file_that_exists_is_replaced_only_when_told() -> None:
    MemoryFileSystem().pipe(URL, OLD)
    with pytest.raises(TargetError, match="exists already") as caught:
        write(ARCHIVE)
    assert caught.value.advice is Advice.REPLACE
    assert MemoryFileSystem().cat(URL) == OLD
    write(ARCHIVE, replace=True, end="abort")
    assert MemoryFileSystem().cat(URL) == OLD
    write(ARCHIVE, replace=True)
    assert MemoryFileSystem().cat(URL) == ARCHIVE


def test_what_is_no_archive_is_not_replaced() -> None:
    MemoryFileSystem().pipe(URL, DISK)
    for replace in (False, True):
        with pytest.raises(TargetError, match="is no archive"):
            write(ARCHIVE, replace=replace)
    assert MemoryFileSystem().cat(URL) == DISK
    MemoryFileSystem().pipe(URL, b"")
    write(ARCHIVE, replace=True)
    assert MemoryFileSystem().cat(URL) == ARCHIVE


def test_a_file_that_appears_meanwhile_is_not_replaced() -> None:
    with pytest.raises(TargetError, match="appeared while it was being written"):
        write(ARCHIVE, end="appear")
    assert MemoryFileSystem().cat(URL) == b"old"


def test_what_is_no_place_for_an_archive() -> None:
    with pytest.raises(RequestError, match="http:// is no place for an archive; archives are written to"):
        open_sink(StoreUrl("http://host/x"), replace=False)
    for url in ("nbd://host/x", "qcow://host/x"):
        with pytest.raises(RequestError, match=r"is no place for an archive; .*s3://"):
            archive_header(parsing.ARCHIVE.parse(url))
    with pytest.raises(ArchiveError, match="cannot open memory://nothing: it does not exist"):
        archive_header(StoreUrl("memory://nothing"))
