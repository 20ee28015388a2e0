from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from archives import decode, encode, frames_of, read_of, with_index

from pybackup.core.archive import by_index as drives_by_index
from pybackup.core.archive.by_index import BATCH, GAP, DrivesByIndex
from pybackup.core.archive.drives import archive_header, open_drives
from pybackup.core.archive.index import ArchiveIndex
from pybackup.core.archive.stream import ArchiveStream
from pybackup.core.errors import Advice, ArchiveError
from pybackup.core.jobs.walk import Run, runs_of
from pybackup.core.places.kinds import LocalPath
from pybackup.formats import cluster_index as index
from pybackup.formats.vma import DriveInfo, Header
from pybackup.formats.vma_stream import DecodedExtent

CLUSTER = 65536
NOISE = random.Random(3)


def scattered(clusters: int, seed: int) -> bytes:
    """A disk of noise, whole zero clusters and sparse ones, in runs of odd lengths."""
    choice = random.Random(seed)
    disk = bytearray()
    while len(disk) < clusters * CLUSTER:
        kind, length = choice.choice(["noise", "zeros", "sparse"]), choice.choice([1, 2, 5, 70])
        for _ in range(length):
            disk += {
                "noise": choice.randbytes(CLUSTER) if kind == "noise" else b"",
                "zeros": bytes(CLUSTER),
                "sparse": (bytes(8192) + choice.randbytes(100)).ljust(CLUSTER, b"\0"),
            }[kind]
    return bytes(disk[: clusters * CLUSTER - 777])


DISKS = {"a": scattered(200, 1), "b": scattered(30, 2), "c": scattered(150, 3)}
ARCHIVE = encode(DISKS, frame_size=1 << 18)


class Reads:
    """Every range that was read of an archive in memory."""

    def __init__(self, archive: bytes) -> None:
        self._read = read_of(archive)
        self.ranges: list[tuple[int, int]] = []

    def __call__(self, offset: int, length: int) -> bytes:
        self.ranges.append((offset, length))
        return self._read(offset, length)


def read_drives(archive: bytes, names: list[str], pread: Callable[[int, int], bytes] | None = None) -> dict[str, bytes]:
    """These drives, as restore puts them together; what is given must come in the order of the archive."""
    with ThreadPoolExecutor(2) as pool:
        opened = ArchiveIndex(pread or read_of(archive), len(archive), "test.vma")
        source = DrivesByIndex(opened, pool, stop=lambda: None)
        ids = {drive.drive_id: drive for drive in opened.header.drives if drive.name in names}
        disks = {drive_id: bytearray(drive.size) for drive_id, drive in ids.items()}
        ends = dict.fromkeys(ids, 0)
        for checked in source.extents(ids):
            for run in runs_of(checked.extent):
                assert run.offset == ends[run.drive_id]
                ends[run.drive_id] += run.length
                if run.buffers is not None:
                    disk, content = disks[run.drive_id], b"".join(run.buffers)
                    disk[run.offset : run.offset + len(content)] = content[: len(disk) - run.offset]
        return {drive.name: bytes(disks[drive_id]) for drive_id, drive in ids.items()}


@pytest.mark.parametrize("names", [["a"], ["b"], ["c"], ["a", "c"], ["a", "b", "c"]])
@pytest.mark.parametrize("frame_size", [4096, 70_000, 1 << 20, 8 << 20])
def test_it_gives_what_the_whole_archive_gives(names: list[str], frame_size: int) -> None:
    archive = encode(DISKS, frame_size=frame_size)
    assert read_drives(archive, names) == {name: DISKS[name] for name in names}


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drives_by_index, "BATCH", 1 << 18)
    monkeypatch.setattr(drives_by_index, "MOST_SLOTS", 7)
    assert read_drives(ARCHIVE, ["a"]) == {"a": DISKS["a"]}


def test_nothing_is_read_but_the_frames_of_the_drive() -> None:
    reads = Reads(ARCHIVE)
    ArchiveIndex(reads, len(ARCHIVE), "test.vma")
    opened = len(reads.ranges)
    read_drives(ARCHIVE, ["b"], reads)
    data = [frame for frame in frames_of(ARCHIVE) if frame.magic is None]
    touched = [
        frame
        for frame in data[1:]
        for end in [frame.offset + len(frame.content)]
        if any(at < end and frame.offset < at + size for at, size in reads.ranges[opened:])
    ]
    wanted = len(DISKS["b"]) // (1 << 18) + 3
    assert len(touched) <= wanted < len(data) // 3


def test_neighbours_are_fetched_together() -> None:
    reads = Reads(ARCHIVE)
    read_drives(ARCHIVE, ["c"], reads)
    fetched = [size for _, size in reads.ranges if size > GAP]
    # One request a batch, and one for each part of a segment.
    assert len(fetched) < 4 + 2 * len(DISKS["c"]) // BATCH + 2 * len(frames_of(ARCHIVE)) // 10


def test_no_frame_is_fetched_twice() -> None:
    reads = Reads(ARCHIVE)
    read_drives(ARCHIVE, ["a", "b", "c"], reads)
    ranges = sorted(reads.ranges[4:])
    assert all(one[0] + one[1] <= other[0] for one, other in pairwise(ranges))


def test_a_changed_byte_is_found_or_does_not_matter() -> None:
    archive = encode({"a": NOISE.randbytes(100_000), "b": NOISE.randbytes(70_000)}, frame_size=65536)
    disk = read_drives(archive, ["b"])["b"]
    for at in range(0, len(archive), 97):
        broken = bytearray(archive)
        broken[at] ^= 0x10
        try:
            assert read_drives(bytes(broken), ["b"]) == {"b": disk}
        except ArchiveError:
            continue


def test_a_wrong_digest_is_told_with_drive_and_cluster() -> None:
    def change(kind: int, content: bytes) -> bytes:
        return content[:-1] + bytes([content[-1] ^ 1]) if kind == index.SEGMENT else content

    small = encode({"a": NOISE.randbytes(70_000), "b": NOISE.randbytes(70_000)})
    words = "test.vma is damaged: a cluster does not match its digest: drive b, clusters 1 to 1"
    with pytest.raises(ArchiveError, match=words):
        read_drives(with_index(small, change), ["b"])
    assert decode(small).damage == []


def test_a_damaged_frame_is_told_with_drive_and_clusters() -> None:
    archive = bytearray(encode({"a": NOISE.randbytes(70_000), "b": NOISE.randbytes(200_000)}, frame_size=65536))
    frame = frames_of(bytes(archive))[-5]
    archive[frame.offset + 40] ^= 1
    words = rf"frame is damaged \(.*\) \(at byte {frame.offset} of the archive\): drive b, clusters \d to \d "
    with pytest.raises(ArchiveError, match=words) as failure:
        read_drives(bytes(archive), ["b"])
    assert failure.value.advice is Advice.SKIP_DAMAGED


def renamed_run(drive: int, first: int) -> Callable[[int, bytes], bytes]:
    """The first run of the first segment speaks of another drive or cluster."""

    def change(kind: int, content: bytes) -> bytes:
        if kind != index.SEGMENT:
            return content
        counts = index.SEGMENT_START.unpack_from(content)
        at = index.SEGMENT_START.size + 8 * counts[2]
        _, run_kind, zero, _, count = index.RUN.unpack_from(content, at)
        return content[:at] + index.RUN.pack(drive, run_kind, zero, first, count) + content[at + index.RUN.size :]

    return change


def test_clusters_that_the_index_does_not_name_are_missing() -> None:
    small = encode({"a": NOISE.randbytes(CLUSTER), "b": NOISE.randbytes(2 * CLUSTER)})
    with pytest.raises(ArchiveError, match="missing in the index: drive a, clusters 0 to 0"):
        read_drives(with_index(small, renamed_run(2, 0)), ["a"])
    with pytest.raises(ArchiveError, match="found twice in the index: drive b"):
        read_drives(with_index(small, renamed_run(2, 1)), ["b"])


def test_a_read_that_fails_is_told() -> None:
    def fail(offset: int, length: int) -> bytes:
        if length > 100_000:
            raise OSError(5, "the server fails")
        return read_of(ARCHIVE)(offset, length)

    with pytest.raises(ArchiveError, match=r"cannot read test.vma at byte \d+: the server fails"):
        read_drives(ARCHIVE, ["a"], fail)


def test_a_damaged_index_does_not_hide_the_header(tmp_path: Path) -> None:
    path = tmp_path / "x.vma"
    for at in range(1, 400, 3):
        broken = bytearray(ARCHIVE)
        broken[-at] ^= 0x10
        path.write_bytes(broken)
        assert [drive.name for drive in archive_header(LocalPath(str(path))).drives] == ["a", "b", "c"]


def test_when_all_drives_are_wanted_the_archive_is_read_through(tmp_path: Path) -> None:
    path = LocalPath(str(tmp_path / "x.vma"))
    (tmp_path / "x.vma").write_bytes(ARCHIVE)
    for wanted, kind in (("abc", ArchiveStream), ("b", DrivesByIndex)):

        def chosen(header: Header, wanted: str = wanted) -> list[DriveInfo]:
            return [drive for drive in header.drives if drive.name in wanted]

        with open_drives(path, chosen, threads=1) as opened:
            assert isinstance(opened, kind)


def test_an_archive_of_nearly_nothing_but_zeros_is_read_by_its_index(tmp_path: Path) -> None:
    for name, disk, by_index in (
        ("sparse.vma", bytes(40 * CLUSTER) + NOISE.randbytes(CLUSTER), True),
        ("dense.vma", DISKS["a"], False),
        ("plain.vma", bytes(40 * CLUSTER) + b"x" * CLUSTER, False),
    ):
        path = tmp_path / name
        path.write_bytes(encode({"a": disk}, level=None if name == "plain.vma" else 1))
        with open_drives(LocalPath(str(path)), lambda header: header.drives, threads=1) as opened:
            assert isinstance(opened, DrivesByIndex) is by_index
            extents = [checked.extent for checked in opened.extents([1])]
        assert put_together(extents, len(disk)) == disk


def put_together(extents: list[DecodedExtent], size: int) -> bytes:
    disk = bytearray(b"?" * size)
    for extent in extents:
        for run in runs_of(extent):
            content = bytes(run.length) if run.buffers is None else b"".join(run.buffers)
            disk[run.offset : run.offset + run.length] = content[: size - run.offset]
    return bytes(disk)


def test_whole_clusters_are_the_same_bytes_in_fewer_runs() -> None:
    header, extents = extents_of(ARCHIVE)
    for extent in extents:
        fine, whole = list(runs_of(extent)), list(runs_of(extent, {drive.drive_id for drive in header.drives}))
        assert bytes_by_place(fine) == bytes_by_place(whole)
        assert all(run.offset % CLUSTER == run.length % CLUSTER == 0 for run in whole)
        assert len(whole) <= len(fine)


def extents_of(archive: bytes) -> tuple[Header, list[DecodedExtent]]:
    with ThreadPoolExecutor(1) as pool:
        rest = [archive]
        stream = ArchiveStream(lambda _: rest.pop() if rest else b"", "test.vma", pool)
        return stream.header, [checked.extent for checked in stream]


def bytes_by_place(runs: list[Run]) -> dict[tuple[int, int], bytes]:
    """Each block of 4 KiB by drive and offset."""
    return {
        (run.drive_id, run.offset + at): (bytes(4096) if run.buffers is None else content[at : at + 4096])
        for run in runs
        for content in [b"" if run.buffers is None else b"".join(run.buffers)]
        for at in range(0, run.length, 4096)
    }
