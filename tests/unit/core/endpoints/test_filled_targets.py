from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pybackup.core.archive.identity import ArchiveIdentity
from pybackup.core.devices.memory import MemoryDevice
from pybackup.core.endpoints.filled_targets import FilledTarget, FillOptions, open_filled
from pybackup.core.errors import BusyError, PybackupError, RequestError, TargetError
from pybackup.core.places.kinds import LocalPath, NbdUri
from pybackup.core.system import disk_identity
from pybackup.core.system.image_lock import ImageLock
from pybackup.formats.vma import DriveInfo, Header

DISKS = {"a": b"1" * 200_000, "b": b"2" * 65536}
DRIVES = [DriveInfo(number, name, len(disk)) for number, (name, disk) in enumerate(DISKS.items(), 1)]
ARCHIVE = ArchiveIdentity("x.vma.zst", Header(bytes(16), 0, tuple(DRIVES), ()), b"d" * 16)


async def fill(
    folder: Path, do: Callable[[dict[str, FilledTarget]], Any], archive: ArchiveIdentity = ARCHIVE, **options: Any
) -> None:
    plan = {drive: LocalPath(str(folder / f"{drive.name}.raw")) for drive in archive.drives}
    sources = {name: MemoryDevice(disk) for name, disk in DISKS.items()}
    async with AsyncExitStack() as stack:
        targets = await open_filled(plan, sources, archive, FillOptions(**options), stack)
        result = do(targets)
        if result is not None:
            await result


def play(folder: Path, do: Callable[[dict[str, FilledTarget]], Any] = lambda _: None, **given: Any) -> None:
    asyncio.run(fill(folder, do, **given))


async def write_some(targets: dict[str, FilledTarget]) -> None:
    await targets["a"].device.pwrite(70_000, b"new")
    await targets["a"].device.flush()


async def bring_all(targets: dict[str, FilledTarget]) -> None:
    for name, target in targets.items():
        await target.device.pread(0, len(DISKS[name]))
        await target.device.flush()


def test_disks_begin_empty_and_go_on_where_they_were(tmp_path: Path) -> None:
    play(tmp_path, write_some)
    assert sorted(os.listdir(tmp_path)) == ["a.raw", "a.raw.restoring", "b.raw", "b.raw.restoring"]
    assert os.path.getsize(tmp_path / "a.raw") == 200_000

    async def read(targets: dict[str, FilledTarget]) -> None:
        assert all(target.is_resumed for target in targets.values())
        assert await targets["a"].device.pread(69_999, 5) == b"1new1"

    play(tmp_path, read)


def test_another_archive_or_drive_is_refused_and_a_merged_one_is_not(tmp_path: Path) -> None:
    play(tmp_path, write_some)
    for other in (
        replace(ARCHIVE, digest=b"e" * 16),
        replace(ARCHIVE, header=replace(ARCHIVE.header, uuid=b"u" * 16)),
        replace(ARCHIVE, header=replace(ARCHIVE.header, drives=(replace(DRIVES[0], size=199_999), DRIVES[1]))),
    ):
        with pytest.raises(TargetError, match="belongs to"):
            play(tmp_path, archive=other)
    play(tmp_path, archive=replace(ARCHIVE, digest=b"e" * 16, about={"replaces": [(b"d" * 16).hex()]}))


def test_a_disk_that_was_exchanged_is_refused(tmp_path: Path) -> None:
    play(tmp_path, write_some)
    content = (tmp_path / "a.raw").read_bytes()
    (tmp_path / "a.raw").rename(tmp_path / "kept")
    with pytest.raises(TargetError, match="is gone"):
        play(tmp_path)
    (tmp_path / "a.raw").write_bytes(content)
    with pytest.raises(TargetError, match="not the disk"):
        play(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "a.raw")
    with (tmp_path / "a.raw").open("ab") as file:
        file.write(b"x")
    with pytest.raises(TargetError, match="wrong size"):
        play(tmp_path)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_exists_is_never_replaced(tmp_path: Path, force: bool) -> None:
    """Else the same command, when all was there, would begin anew over what guests have written since."""
    (tmp_path / "a.raw").write_bytes(b"something")
    with pytest.raises(TargetError, match="exists already"):
        play(tmp_path, replace=force)
    assert os.listdir(tmp_path) == ["a.raw"]


@pytest.mark.parametrize("name", ["a.raw", "a.raw.restoring"])
def test_what_was_killed_at_the_very_beginning_begins_anew(tmp_path: Path, name: str) -> None:
    play(tmp_path)
    os.truncate(tmp_path / "a.raw", 0)
    if name == "a.raw":
        os.unlink(tmp_path / "a.raw")
    play(tmp_path, write_some)
    assert os.path.getsize(tmp_path / "a.raw") == 200_000


def test_a_disk_without_a_map_is_whole_if_the_maps_of_all_others_say_so(tmp_path: Path) -> None:
    play(tmp_path, write_some)
    os.unlink(tmp_path / "b.raw.restoring")
    with pytest.raises(TargetError, match=r"b\.raw exists already"):
        play(tmp_path)
    os.unlink(tmp_path / "b.raw")
    play(tmp_path, bring_all)
    os.unlink(tmp_path / "b.raw.restoring")

    def all_there(targets: dict[str, FilledTarget]) -> None:
        assert all(target.device.is_whole for target in targets.values())
        assert targets["b"].map_path is None

    play(tmp_path, all_there)


def test_nobody_else_uses_the_disk_meanwhile(tmp_path: Path) -> None:
    async def twice(_: object) -> None:
        with pytest.raises(BusyError):
            await fill(tmp_path, lambda _: None)

    play(tmp_path, twice)


@pytest.mark.parametrize(
    ("place", "match"),
    [
        (LocalPath("x.qcow2"), "qcow2"),
        (LocalPath("/dev/stdout"), "new file"),
        (NbdUri.of("nbd://localhost/x"), "new file"),
    ],
)
def test_what_cannot_fill_is_refused(place: Any, match: str) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            await open_filled({DRIVES[0]: place}, {}, ARCHIVE, FillOptions(), stack)

    with pytest.raises(RequestError, match=match):
        asyncio.run(test())


def test_nothing_is_left_where_there_can_be_no_map(tmp_path: Path) -> None:
    with pytest.raises(PybackupError):
        asyncio.run(_one(tmp_path, map_path=str(tmp_path / "missing" / "map")))
    assert not os.listdir(tmp_path)


async def _one(folder: Path, **options: Any) -> None:
    async with AsyncExitStack() as stack:
        plan = {DRIVES[0]: LocalPath(str(folder / "a.raw"))}
        await open_filled(plan, {"a": MemoryDevice(DISKS["a"])}, ARCHIVE, FillOptions(**options), stack)


def test_a_map_that_was_written_anew_before_the_disk_was_ours_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(tmp_path, write_some)
    taken = ImageLock.for_writing

    def late(fd: int, name: str) -> ImageLock:
        path = f"{name}.restoring"
        os.rename(path, f"{path}.old")
        Path(path).write_bytes(Path(f"{path}.old").read_bytes())
        return taken(fd, name)

    with monkeypatch.context() as patch:
        patch.setattr(ImageLock, "for_writing", late)
        with pytest.raises(BusyError, match="until just now"):
            play(tmp_path)
    play(tmp_path)


def test_nothing_is_left_of_a_restore_that_is_complete(tmp_path: Path) -> None:
    async def finish(targets: dict[str, FilledTarget]) -> None:
        await bring_all(targets)
        for target in targets.values():
            await target.device.finish()

    play(tmp_path, finish)
    assert sorted(os.listdir(tmp_path)) == ["a.raw", "b.raw"]
    assert not os.listxattr(tmp_path / "a.raw")
    assert (tmp_path / "a.raw").read_bytes() == DISKS["a"]


def test_a_new_file_with_the_inode_of_the_old_one_is_another_disk(tmp_path: Path) -> None:
    play(tmp_path, write_some)
    if not os.listxattr(tmp_path / "a.raw"):
        pytest.skip("this filesystem has no extended attributes")
    # As where a file was removed, and another was made that got its inode.
    os.removexattr(tmp_path / "a.raw", disk_identity.MARK)
    with pytest.raises(TargetError, match="not the disk"):
        play(tmp_path)


def test_where_files_cannot_be_marked_the_inode_tells_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_identity, "mark", lambda fd, text: False)
    monkeypatch.setattr(disk_identity, "mark_of", lambda fd: None)
    play(tmp_path, write_some)
    play(tmp_path)
    (tmp_path / "a.raw").rename(tmp_path / "kept")
    (tmp_path / "a.raw").write_bytes((tmp_path / "kept").read_bytes())
    with pytest.raises(TargetError, match="not the disk"):
        play(tmp_path)


def test_two_that_begin_at_once_take_nothing_from_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the first between its map and its disk's length: one of them ends, and one map is left."""
    real, others = disk_identity.mark, []

    def while_another_begins(fd: int, text: str) -> bool:
        if not others:
            others.append(True)
            play(tmp_path, write_some)
        return real(fd, text)

    # The second runs in a loop of its own, in a thread, as another process would.
    def in_a_thread(fd: int, text: str) -> bool:
        thread = threading.Thread(target=while_another_begins, args=(fd, text))
        thread.start()
        thread.join()
        return real(fd, text)

    monkeypatch.setattr(disk_identity, "mark", in_a_thread)
    with pytest.raises(BusyError, match="in use until just now"):
        play(tmp_path)
    monkeypatch.undo()

    async def read(targets: dict[str, FilledTarget]) -> None:
        assert await targets["a"].device.pread(69_999, 5) == b"1new1"

    play(tmp_path, read)


def test_an_empty_disk_that_another_has_locked_is_not_begun_anew(tmp_path: Path) -> None:
    play(tmp_path)
    os.truncate(tmp_path / "a.raw", 0)
    with (tmp_path / "a.raw").open("r+b") as held, ImageLock.for_writing(held.fileno(), "a"), pytest.raises(BusyError):
        play(tmp_path)
    assert {"a.raw", "a.raw.restoring"} <= set(os.listdir(tmp_path))


def test_one_that_was_killed_before_its_map_went_is_known_still(tmp_path: Path) -> None:
    play(tmp_path, write_some)
    if disk_identity.tells_incomplete(str(tmp_path / "a.raw")):
        with (tmp_path / "a.raw").open("r+b") as disk:
            mark = disk_identity.mark_of(disk.fileno())
            assert mark
            disk_identity.mark_whole(disk.fileno(), mark)
    assert not disk_identity.tells_incomplete(str(tmp_path / "a.raw"))

    async def read(targets: dict[str, FilledTarget]) -> None:
        assert await targets["a"].device.pread(69_999, 5) == b"1new1"

    play(tmp_path, read)
