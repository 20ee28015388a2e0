"""What the user is told of a disk to be served that has no image lock of ours."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pybackup.core.endpoints.drive_names import NamedPlace
from pybackup.core.errors import BusyError
from pybackup.core.live import served_disks
from pybackup.core.live.served_disks import open_served
from pybackup.core.places.kinds import LocalPath, ServedPlace
from pybackup.core.system.image_lock import ImageLock


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * 5000)
    return path


def warning_of(disk: Path, *, force_share: bool) -> str | None:
    async def open_and_close() -> str | None:
        sources: list[NamedPlace[ServedPlace]] = [Source(LocalPath(str(disk)))]
        served = (await open_served(sources, image_format=None, read_only=False, force_share=force_share))["disk"]
        await served.close()
        return served.warning

    return asyncio.run(open_and_close())


class Source:
    """A source without a name of its own."""

    name = None

    def __init__(self, what: LocalPath) -> None:
        self.what = what


def test_force_share_warns_where_another_program_has_the_disk(disk: Path) -> None:
    assert warning_of(disk, force_share=True) is None
    with disk.open("rb") as file, ImageLock.for_writing(file.fileno(), "disk"):
        assert warning_of(disk, force_share=True) == f"{disk} is in use by another program, and is served all the same"
        with pytest.raises(BusyError):
            warning_of(disk, force_share=False)


def test_a_filesystem_without_locks_is_told(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLocks:
        note = "no image lock on disk: No locks available"

        @classmethod
        def for_writing(cls, *_: object) -> NoLocks:
            return cls()

        for_reading = for_writing

        def release(self) -> None:
            pass

    monkeypatch.setattr(served_disks, "ImageLock", NoLocks)
    assert warning_of(disk, force_share=False) == NoLocks.note
