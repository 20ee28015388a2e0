from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from archives import encode

from pybackup.core.archive import open as opening
from pybackup.core.errors import ArchiveError, PybackupError, RequestError, TargetError
from pybackup.core.places.kinds import ArchivePlace, LocalPath, NbdUri, TargetPlace
from pybackup.core.runs.restore import RestoreRequest
from pybackup.core.runs.restore_part import Part, restore_part

SIZE = 20 * 65536 + 1000
DISK = b"".join(
    bytes(65536) if number in (5, 6, 7) else random.Random(number).randbytes(65536) for number in range(21)
)[:SIZE]
ARCHIVE = encode({"disk": DISK, "other": b"o" * 4096}, frame_size=128 << 10)


@pytest.fixture(name="archive")
def _archive(tmp_path: Path) -> LocalPath:
    (tmp_path / "a.vma.zst").write_bytes(ARCHIVE)
    return LocalPath(str(tmp_path / "a.vma.zst"))


def restored(archive: ArchivePlace, target: TargetPlace, part: Part, *drives: str) -> None:
    async def whole() -> None:
        async with restore_part(RestoreRequest(archive, target, drives=drives or ("disk",)), part) as (job, _):
            await job.run()
            assert job.progress.done == job.progress.size

    asyncio.run(whole())


@pytest.mark.parametrize(
    "part",
    [
        Part(0, 1),
        Part(65535, 2),
        Part(4 * 65536 + 5, 5 * 65536),
        Part(6 * 65536, 100),
        Part(SIZE - 1),
        Part(SIZE - 1000, 1000),
        Part(0, None),
        Part(3, 17 * 65536),
    ],
    ids=str,
)
def test_a_part_is_these_bytes(archive: LocalPath, tmp_path: Path, part: Part) -> None:
    restored(archive, LocalPath(str(tmp_path / "part")), part)
    end = SIZE if part.length is None else part.offset + part.length
    assert (tmp_path / "part").read_bytes() == DISK[part.offset : end]


def test_no_more_frames_are_read_than_hold_it(
    archive: LocalPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = opening.pread_exactly

    def counted(fd: int, name: str) -> object:
        pread = real(fd, name)

        def counting(offset: int, length: int) -> bytes:
            read.append(length)
            return pread(offset, length)

        return counting

    monkeypatch.setattr(opening, "pread_exactly", counted)
    restored(archive, LocalPath(str(tmp_path / "part")), Part(10 * 65536 + 3, 1000))
    # A frame, and what tells where it is.
    assert sum(read) < 200_000 < len(ARCHIVE) // 5


@pytest.mark.parametrize(
    ("part", "sentence"),
    [(Part(SIZE), "none from"), (Part(SIZE - 5, 6), "ends 1 bytes before"), (Part(SIZE + 9, 1), "none from")],
)
def test_a_part_that_the_drive_does_not_have(archive: LocalPath, tmp_path: Path, part: Part, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        restored(archive, LocalPath(str(tmp_path / "part")), part)
    assert [path.name for path in tmp_path.iterdir()] == ["a.vma.zst"]


def test_a_part_is_of_one_drive_and_no_disk(archive: LocalPath, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match="choose one"):
        restored(archive, LocalPath(str(tmp_path / "folder")), Part(0, 1), "disk", "other")
    nbd = NbdUri.of("nbd://localhost/x")
    assert nbd is not None
    for place in (LocalPath(str(tmp_path / "x.qcow2")), LocalPath("/dev/full0"), nbd):
        with pytest.raises(PybackupError):
            restored(archive, place, Part(0, 1))
    (tmp_path / "there").write_bytes(b"x")
    with pytest.raises(TargetError, match="exists already"):
        restored(archive, LocalPath(str(tmp_path / "there")), Part(0, 1))
    assert (tmp_path / "there").read_bytes() == b"x"


def test_damage_is_told_and_only_where_it_is(archive: LocalPath, tmp_path: Path) -> None:
    damaged = bytearray(ARCHIVE)
    damaged[len(ARCHIVE) // 2] ^= 1
    (tmp_path / "a.vma.zst").write_bytes(damaged)
    restored(archive, LocalPath(str(tmp_path / "begin")), Part(0, 65536))
    with pytest.raises(ArchiveError, match="damaged"):
        restored(archive, LocalPath(str(tmp_path / "all")), Part(0))
    assert not (tmp_path / "all").exists()
