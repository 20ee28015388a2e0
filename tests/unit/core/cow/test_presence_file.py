from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from bitarray import bitarray

from pybackup.core.cow import presence_file
from pybackup.core.cow.presence_file import PresenceFile, refuse_incomplete
from pybackup.core.cow.sparse_bits import SparseBits
from pybackup.core.errors import SourceError, TargetError
from pybackup.formats.restoring_map import HEADER_SIZE, RestoringHeader

CLUSTERS = 100_000
HEADER = RestoringHeader("aa" * 16, "bb" * 16, "a.vma.zst", "disk", CLUSTERS * 65536 - 5, "cc" * 16, "file", "inode 1")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "disk.raw.restoring")


def bits_of(runs: Iterable[tuple[int, int]]) -> bitarray:
    bits = bitarray(CLUSTERS)
    bits.setall(False)
    for first, count in runs:
        bits[first : first + count] = True
    return bits


def read(path: str) -> bitarray:
    record = PresenceFile.open(path)
    assert record is not None and record.header == HEADER
    bits = bits_of(record.there())
    record.close_unused()
    return bits


def test_what_is_added_is_there_after_opening_again(path: str) -> None:
    async def write() -> None:
        record = PresenceFile.create(path, HEADER)
        await record.add([(0, 5), (99_999, 1)])
        await record.add([(7, 70_000)])
        await record.close()
        again = PresenceFile.open(path)
        assert again is not None
        assert len(list(again.there())) == 3
        await again.add([(80_000, 2)])
        await again.close()

    asyncio.run(write())
    assert read(path) == bits_of([(0, 5), (99_999, 1), (7, 70_000), (80_000, 2)])


@pytest.mark.parametrize("kind", ["plain", "sparse"])
@pytest.mark.parametrize("density", [0.0, 0.0005, 0.5, 1.0])
def test_a_map_written_anew_tells_the_same(path: str, kind: str, density: float) -> None:
    draw = random.Random(density)
    absent: bitarray | SparseBits = bitarray(CLUSTERS)
    absent.setall(True)
    if kind == "sparse":
        absent = SparseBits(CLUSTERS)
    present = [number for number in range(CLUSTERS) if draw.random() < density]
    for number in present:
        absent[number : number + 1] = False

    async def write() -> None:
        record = PresenceFile.create(path, HEADER)
        await record.add([(1, 3)])
        await record.replace(absent)
        await record.add([(50, 1)])
        await record.close()

    asyncio.run(write())
    assert read(path) == bits_of([*((number, 1) for number in present), (50, 1)])
    assert os.path.getsize(path) < 40_000
    assert os.listdir(os.path.dirname(path)) == ["disk.raw.restoring"]


def test_a_long_map_wants_to_be_short_again(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_file, "LONG", 10_000)

    async def write() -> None:
        record = PresenceFile.create(path, HEADER)
        record._long = 10_000
        number = 0
        while not record.wants_all:
            await record.add([(number, 1)])
            number += 2
        absent = ~bits_of((one, 1) for one in range(0, number, 2))
        await record.replace(absent)
        assert not record.wants_all
        await record.close()

    asyncio.run(write())
    assert os.path.getsize(path) < 10_000


def written(path: str) -> tuple[bytes, list[int]]:
    """A map of three records, and where they begin."""

    async def write() -> list[int]:
        record = PresenceFile.create(path, HEADER)
        places = []
        for number in range(3):
            places.append(os.path.getsize(path))
            await record.add([(number * 10, 5)] * 40)
        await record.close()
        return places

    places = asyncio.run(write())
    return Path(path).read_bytes(), places


def test_a_torn_last_record_is_as_if_it_were_not_there_and_is_written_over(path: str) -> None:
    content, places = written(path)
    for cut in range(places[2], places[2] + 690, 100):
        Path(path).write_bytes(content[:cut])
        assert read(path) == bits_of([(0, 5), (10, 5)])
    for at in range(places[2], len(content) - 300, 97):
        Path(path).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert read(path) == bits_of([(0, 5), (10, 5)])

    async def go_on() -> None:
        record = PresenceFile.open(path)
        assert record is not None
        list(record.there())
        await record.add([(90, 1)])
        await record.close()

    asyncio.run(go_on())
    assert read(path) == bits_of([(0, 5), (10, 5), (90, 1)])


def test_damage_anywhere_before_the_last_record_is_told_and_nothing_is_forgotten(path: str) -> None:
    content, places = written(path)
    whole = set(range(places[2]))
    padding = {at for at in whole if at >= HEADER_SIZE and not any(content[at : at // 512 * 512 + 512])}
    for at in sorted(whole - padding)[::53]:
        Path(path).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(TargetError, match=r"disk\.raw\.restoring"):
            read(path)


def test_what_is_no_map_is_refused(path: str, tmp_path: Path) -> None:
    assert PresenceFile.open(path) is None
    Path(path).write_bytes(b"x" * 5000)
    with pytest.raises(TargetError, match="no map"):
        PresenceFile.open(path)
    with pytest.raises(TargetError, match="exists"):
        PresenceFile.create(path, HEADER)
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(TargetError):
        PresenceFile.open(path)


def test_a_map_that_tells_of_more_than_the_drive_has_is_damaged(path: str) -> None:
    async def write() -> None:
        record = PresenceFile.create(path, HEADER)
        await record.add([(CLUSTERS - 1, 2)])
        await record.close()

    asyncio.run(write())
    with pytest.raises(TargetError, match="damaged"):
        read(path)


def test_a_removed_map_leaves_a_disk_that_is_whole(path: str) -> None:
    disk = path.removesuffix(".restoring")

    async def write() -> None:
        record = PresenceFile.create(path, HEADER)
        with pytest.raises(SourceError, match="incomplete"):
            refuse_incomplete(disk)
        await record.remove()

    asyncio.run(write())
    refuse_incomplete(disk)
    assert not os.path.exists(path)


def test_a_record_that_does_not_fit_is_written_when_it_does(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def write() -> None:
        record = PresenceFile.create(path, HEADER)
        await record.add([(0, 1)])
        real = presence_file.write_fully

        def full(fd: int, offset: int, data: bytes) -> None:
            real(fd, offset, data[:300])
            raise OSError(28, "full")

        with monkeypatch.context() as patch:
            patch.setattr(presence_file, "write_fully", full)
            for _ in range(2):
                with pytest.raises(OSError, match="full"):
                    await record.add([(5, 2)] * 100)
            absent = bitarray(CLUSTERS)
            absent.setall(True)
            with pytest.raises(OSError, match="full"):
                await record.replace(absent)
        await record.add([(7, 1)])
        await record.close()

    asyncio.run(write())
    assert read(path) == bits_of([(0, 1), (7, 1)])
    assert os.listdir(os.path.dirname(path)) == ["disk.raw.restoring"]


def test_nothing_is_recorded_in_a_new_file_whose_name_may_not_last(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def fails(of: str) -> None:
        raise OSError(5, "no")

    async def write() -> None:
        record = PresenceFile.create(path, HEADER)
        absent = bitarray(CLUSTERS)
        absent.setall(True)
        absent[3:4] = False
        with monkeypatch.context() as patch:
            patch.setattr(presence_file, "_sync_folder", fails)
            with pytest.raises(OSError, match="no"):
                await record.replace(absent)
            with pytest.raises(OSError, match="no"):
                await record.add([(9, 1)])
        with monkeypatch.context() as patch:
            patch.setattr(presence_file, "_sync_folder", synced.append)
            await record.add([(10, 1)])
            await record.add([(11, 1)])
        await record.close()

    asyncio.run(write())
    assert synced == [path]
    assert read(path) == bits_of([(3, 1), (10, 2)])
