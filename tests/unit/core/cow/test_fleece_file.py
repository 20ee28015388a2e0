from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pybackup.core.cow import fleece_file
from pybackup.core.cow.fleece_file import FleeceFile
from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.errors import TargetError
from pybackup.core.system.unfilled import unfilled_aligned


def test_what_is_stored_comes_back_and_its_room_is_used_again(tmp_path: Path) -> None:
    async def main() -> None:
        fleece = FleeceFile(str(tmp_path), 4 * CLUSTER_SIZE)
        first, second = await fleece.store([b"a" * (CLUSTER_SIZE + 1)]), await fleece.store([b"b" * 100])
        assert first is not None and second is not None
        assert await fleece.store([b"c" * (2 * CLUSTER_SIZE)]) is None, "one cluster is left"
        assert await fleece.load(first, CLUSTER_SIZE + 1) == b"a" * (CLUSTER_SIZE + 1)
        again = await fleece.store([b"d" * (2 * CLUSTER_SIZE)])
        assert again is not None
        assert await fleece.load(second, 100) == b"b" * 100
        assert await fleece.load(again, 2 * CLUSTER_SIZE) == b"d" * (2 * CLUSTER_SIZE)
        await fleece.close()
        await fleece.close()

    asyncio.run(main())


@pytest.mark.parametrize("does_at_most", [1 << 30, CLUSTER_SIZE + 5, 0])
def test_many_pieces_are_stored_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does_at_most: int) -> None:
    real = os.pwritev

    def pwritev(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, [memoryview(b"".join(buffers))[:does_at_most]], offset)

    async def main() -> None:
        fleece = FleeceFile(str(tmp_path), 8 * CLUSTER_SIZE)
        aligned = unfilled_aligned(CLUSTER_SIZE)
        aligned[:] = b"c" * CLUSTER_SIZE
        for contents in ([b"a" * CLUSTER_SIZE, b"b" * CLUSTER_SIZE, b"b" * 100], [aligned, aligned]):
            place = await fleece.store(contents)
            assert place is not None
            assert await fleece.load(place, sum(map(len, contents))) == b"".join(contents)
        await fleece.close()

    monkeypatch.setattr(os, "pwritev", pwritev)
    asyncio.run(main())


def test_nothing_is_ever_to_be_seen(tmp_path: Path) -> None:
    async def main() -> None:
        fleece = FleeceFile(str(tmp_path), 1 << 30)
        await fleece.store([b"x" * 100])
        assert os.listdir(tmp_path) == []
        await fleece.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"cannot create the fleecing file in .*/nowhere: No such file"):
        FleeceFile(str(tmp_path / "nowhere"), 1 << 20)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    async def main() -> None:
        fleece = FleeceFile(str(tmp_path), CLUSTER_SIZE)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", failing(code))
            assert await fleece.store([b"x"]) is None
        assert await fleece.store([b"y"]) == 0, "its room was given back"
        await fleece.close()

    asyncio.run(main())


def test_a_reserve_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that the file has already are used all the same."""

    async def main() -> None:
        fleece = FleeceFile(str(tmp_path), 1 << 30)
        place = await fleece.store([bytes(10 * CLUSTER_SIZE)])
        assert place is not None
        room = os.fstatvfs(fleece._fd)
        monkeypatch.setattr(os, "fstatvfs", lambda _: Room(room.f_frsize, room.f_blocks, 300 << 20))
        assert await fleece.store([bytes(44 << 20)]) is not None
        assert await fleece.store([bytes(45 << 20)]) is None, "a few more bytes would leave less than 256 MiB"
        await fleece.load(place, 10 * CLUSTER_SIZE)
        monkeypatch.setattr(os, "fstatvfs", lambda _: Room(room.f_frsize, room.f_blocks, 0))
        assert await fleece.store([bytes(10 * CLUSTER_SIZE)]) == place
        assert await fleece.store([b"x"]) is None
        await fleece.close()

    asyncio.run(main())


@dataclass
class Room:
    """As statvfs(3) tells it, with what is free in bytes."""

    f_frsize: int
    blocks: int
    free: int

    @property
    def f_blocks(self) -> int:
        return max(self.blocks, (4 << 30) // self.f_frsize)

    @property
    def f_bavail(self) -> int:
        return self.free // self.f_frsize


def test_what_a_full_disk_took_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def pwritev(fd: int, buffers: list[memoryview], offset: int) -> int:
        real(fd, [buffers[0]], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        fleece = FleeceFile(str(tmp_path), 1 << 30)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", pwritev)
            assert await fleece.store([b"x" * (4 << 20), b"y"]) is None
        os.fsync(fleece._fd)
        assert os.fstat(fleece._fd).st_blocks * 512 < 1 << 20
        await fleece.close()

    asyncio.run(main())


def test_a_broken_disk_is_the_target_failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        fleece = FleeceFile(str(tmp_path), 1 << 30)
        place = await fleece.store([b"x"])
        monkeypatch.setattr(os, "pwritev", failing(errno.EIO))
        monkeypatch.setattr(fleece_file, "read_fully", failing(errno.EIO))
        with pytest.raises(TargetError, match="cannot write the fleecing file"):
            await fleece.store([b"y"])
        with pytest.raises(TargetError, match="cannot read the fleecing file"):
            await fleece.load(place or 0, 1)
        await fleece.close()

    asyncio.run(main())


def test_a_store_that_is_cancelled_gives_its_room_back(tmp_path: Path) -> None:
    async def main() -> None:
        fleece = FleeceFile(str(tmp_path), CLUSTER_SIZE)
        storing = asyncio.create_task(fleece.store([b"x"]))
        await asyncio.sleep(0)
        storing.cancel()
        await asyncio.wait([storing])
        assert await fleece.store([b"y"]) == 0
        await fleece.close()

    asyncio.run(main())


def failing(code: int) -> Any:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail
