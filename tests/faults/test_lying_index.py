"""An index or a seek table whose checksums are right and whose contents are not."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from archives import decode, encode, frames_of, open_index, with_index

from pybackup.core.archive.by_index import DrivesByIndex
from pybackup.core.archive.facts import archive_facts
from pybackup.core.errors import ArchiveError
from pybackup.core.places.kinds import LocalPath
from pybackup.formats import cluster_index as index
from pybackup.formats import zstd_seekable as zs
from pybackup.formats.clusters import expand

NOISE = random.Random(7)
DISKS = {"a": NOISE.randbytes(150_000) + bytes(300_000) + b"end", "b": NOISE.randbytes(1000)}
ARCHIVE = encode(DISKS, frame_size=65536)

_frames, _runs, _stored = 2, 3, 4
START = index.SEGMENT_START


def in_segment(at: Callable[[tuple[int, ...]], int], value: bytes) -> Callable[[int, bytes], bytes]:
    """Writes ``value`` into the segment, at a place told from the counts at its beginning."""

    def change(kind: int, content: bytes) -> bytes:
        if kind != index.SEGMENT:
            return content
        out = bytearray(content)
        place = at(START.unpack_from(out))
        assert out[place : place + len(value)] != value
        out[place : place + len(value)] = value
        return bytes(out)

    return change


def runs_at(counts: tuple[int, ...]) -> int:
    return START.size + 8 * counts[_frames]


def masks_at(counts: tuple[int, ...]) -> int:
    return runs_at(counts) + 12 * counts[_runs]


LIES = {
    "file offset": in_segment(lambda _: 0, b"\x05"),
    "vma offset": in_segment(lambda _: 8, b"\xff\xff\xff\xff"),
    "frame too long": in_segment(lambda _: START.size, b"\xff\xff\xff\xff"),
    "frame holds more": in_segment(lambda _: START.size + 4, b"\xff\xff\xff\x7f"),
    "another drive": in_segment(runs_at, b"\x02"),
    "no such drive": in_segment(runs_at, b"\x09"),
    "data called zero": in_segment(lambda counts: runs_at(counts) + 1, b"\x00"),
    "cluster moved": in_segment(lambda counts: runs_at(counts) + 4, b"\x01"),
    "far away": in_segment(lambda counts: runs_at(counts) + 4, b"\xff\xff\xff\xff"),
    "another mask": in_segment(masks_at, b"\x01\x00"),
    "another place": in_segment(lambda counts: masks_at(counts) + 2 * counts[_stored], b"\xff\x00"),
    "another digest": in_segment(lambda counts: masks_at(counts) + 6 * counts[_stored], b"\x00" * 16),
    "nothing": lambda kind, content: START.pack(0, 0, 0, 0, 0) if kind == index.SEGMENT else content,
    "kinds swapped": lambda kind, content: b"" if kind == index.SEGMENT else content,
}


@pytest.mark.parametrize("lie", LIES)
def test_verify_finds_an_index_that_lies(lie: str) -> None:
    liar = with_index(ARCHIVE, LIES[lie])
    read = decode(liar, tolerant=True)
    assert any("index" in damage.what for damage in read.damage)
    assert read.drives == DISKS
    with pytest.raises(ArchiveError, match="index"):
        decode(liar)


@pytest.mark.parametrize("lie", LIES)
def test_a_reader_that_trusts_it_fails_and_never_crashes(lie: str) -> None:
    """It believes which cluster is zero, and which lies where; what it gives is a cluster of the archive, and whole."""
    stored = {disk[at : at + 65536].ljust(65536, b"\0") for disk in DISKS.values() for at in range(0, len(disk), 65536)}
    archive = open_index(with_index(ARCHIVE, LIES[lie]))
    for drive in archive.header.drives:
        for cluster in range(drive.clusters):
            try:
                content = archive.read_cluster(drive.drive_id, cluster)
            except ArchiveError:
                continue
            assert content in stored


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("drive_id", [1, 2])
def test_one_drive_restored_by_it_fails_and_never_crashes(lie: str, drive_id: int) -> None:
    stored = {disk[at : at + 65536].ljust(65536, b"\0") for disk in DISKS.values() for at in range(0, len(disk), 65536)}
    with ThreadPoolExecutor(2) as pool:
        try:
            source = DrivesByIndex(open_index(with_index(ARCHIVE, LIES[lie])), pool, stop=lambda: None)
            extents = [checked.extent for checked in source.extents([drive_id])]
        except ArchiveError:
            return
    for extent in extents:
        for slot, content in zip(extent.header.slots, extent.stored, strict=True):
            assert content is not None and expand(slot.mask, content) in stored


@pytest.mark.parametrize("lie", LIES)
def test_info_fails_with_an_error_of_ours_or_tells_something(lie: str, tmp_path: Any) -> None:
    (tmp_path / "liar.vma").write_bytes(with_index(ARCHIVE, LIES[lie]))
    try:
        facts = archive_facts(LocalPath(str(tmp_path / "liar.vma")))
    except ArchiveError:
        return
    assert facts.has_index


def with_segment_row(row: tuple[int, int, int]) -> Callable[[int, bytes], bytes]:
    def change(kind: int, content: bytes) -> bytes:
        if kind != index.DIRECTORY:
            return content
        at = index.DIRECTORY_START.size
        return content[:at] + index.SEGMENT_ROW.pack(*row) + content[at + index.SEGMENT_ROW.size :]

    return change


@pytest.mark.parametrize(
    "row", [(0, 100, 2), (1 << 63, 100, 2), (0, 0xFFFFFFFF, 2), (len(ARCHIVE) - 5, 100, 2), (0, 0, 2), (0, 7, 2)]
)
def test_a_directory_that_names_another_place_is_found(row: tuple[int, int, int]) -> None:
    liar = with_index(ARCHIVE, with_segment_row(row))
    assert any("directory" in damage.what for damage in decode(liar, tolerant=True).damage)
    with pytest.raises(ArchiveError):
        open_index(liar).read_cluster(1, 0)


def change_stored_bytes(about: dict[str, Any]) -> None:
    about["drives"][0]["stored_bytes"] += 4096


@pytest.mark.parametrize(
    "change",
    [
        change_stored_bytes,
        lambda about: about.update(drives=[]),
        lambda about: about.update(drives={"id": 1}),
        lambda about: about.update(drives=[None, 5]),
        lambda about: about["drives"][0].update(id=[1]),
        lambda about: about["drives"][0].update(size=1 << 70),
        lambda about: about.pop("drives"),
        lambda about: about.update(segments="00" * 16),
        lambda about: about.update(segments=None),
    ],
)
def test_a_directory_that_tells_lies_about_the_drives_is_found(
    change: Callable[[dict[str, Any]], None], tmp_path: Any
) -> None:
    liar = encode(DISKS, change_about=change)
    assert any("directory" in damage.what for damage in decode(liar, tolerant=True).damage)
    (tmp_path / "liar.vma").write_bytes(liar)
    facts = archive_facts(LocalPath(str(tmp_path / "liar.vma")))
    assert facts.counts[1].stored_bytes == 37 * 4096 + 4096


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("number", range(len(frames_of(ARCHIVE)) - 1))
def test_verify_finds_every_row_of_a_seek_table_that_lies(number: int, column: int) -> None:
    frames = frames_of(ARCHIVE)
    whole = zs.SeekTable.decode(frames[-1].content)
    table = zs.SeekTable()
    for at in range(len(whole)):
        row = list(whole.row(at))
        row[column] += at == number
        table.add(*row)
    liar = ARCHIVE[: frames[-1].offset] + table.encode()
    assert [damage.what.split(" (")[0] for damage in decode(liar, tolerant=True).damage] == [
        "the seek table does not agree with the frames"
    ]


def test_parts_of_the_end_that_are_missing_are_told() -> None:
    frames = [bytes(frame.content) for frame in frames_of(ARCHIVE)]
    *data, segment, directory, table = frames
    for end in (
        (segment,),
        (segment, directory),
        (segment, table),
        (directory, table),
        (table,),
        (segment, directory, table, table),
    ):
        assert decode(b"".join((*data, *end)), tolerant=True).damage, end
    without = decode(b"".join(data), tolerant=True)
    assert (without.damage, without.drives, without.stream.has_seek_table) == ([], DISKS, False)


def test_an_index_behind_bytes_that_it_does_not_know_of_is_told() -> None:
    shifted = zs.skippable(0x184D2A50, b"hello") + ARCHIVE
    read = decode(shifted, tolerant=True)
    assert read.drives == DISKS
    assert any("index" in damage.what for damage in read.damage)
