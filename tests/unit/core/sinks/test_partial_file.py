"""What lies under the temporary name, or beside it, when an output begins and ends; for users of the library, too."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pybackup.core.errors import Advice, BusyError, TargetError
from pybackup.core.places.kinds import LocalPath
from pybackup.core.sinks import leftover
from pybackup.core.sinks.output_place import open_place
from pybackup.core.sinks.partial_file import PartialFile
from pybackup.core.sinks.stream import StreamSink

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of another user's")
NEW = b"what is written"
NOBODY = 65534


def write(path: Path, *, replace: bool = False, keep_partial: bool = False, fail: bool = False) -> PartialFile:
    file = PartialFile(str(path), replace=replace, keep_partial=keep_partial)
    try:
        file.open()
        os.write(file.fd, NEW)
        if not fail:
            file.commit()
    finally:
        file.abort()
    return file


def killed(path: Path) -> Path:
    """What a killed run leaves."""
    file = PartialFile(str(path), replace=True)
    file.open()
    os.write(file.fd, b"half of it")
    os.close(file.fd)
    return Path(file.partial)


def test_a_leftover_is_removed_and_never_written_to(tmp_path: Path) -> None:
    partial = killed(tmp_path / "out")
    with partial.open("rb") as still_open:
        write(tmp_path / "out")
        assert still_open.read() == b"half of it"
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_leftover_that_is_a_second_name_costs_the_first_nothing(tmp_path: Path) -> None:
    finished = tmp_path / "monday"
    finished.write_bytes(b"finished")
    os.link(finished, tmp_path / ".out.partial")
    write(tmp_path / "out")
    assert finished.read_bytes() == b"finished"
    assert finished.stat().st_nlink == 1
    assert sorted(os.listdir(tmp_path)) == ["monday", "out"]


def plant_symlink(name: Path) -> None:
    name.symlink_to(name.parent.parent / "elsewhere")


def plant_file(name: Path) -> None:
    name.write_bytes(b"notes of somebody")


PLANTED: dict[str, Callable[[Path], None]] = {
    "symlink": plant_symlink,
    "folder": Path.mkdir,
    "fifo": os.mkfifo,
    "file": plant_file,
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_not_ours_stays_and_another_name_is_taken(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"elsewhere")
    PLANTED[what](folder / ".out.partial")
    before = os.lstat(folder / ".out.partial")
    file = PartialFile(str(folder / "out"), replace=False)
    file.open()
    assert Path(file.partial).name == ".out.1.partial"
    with pytest.raises(BusyError):
        write(folder / "out")
    os.write(file.fd, NEW)
    file.commit()
    assert (folder / "out").read_bytes() == NEW
    assert os.lstat(folder / ".out.partial") == before or what == "fifo"
    assert (tmp_path / "elsewhere").read_bytes() == b"elsewhere"
    assert sorted(os.listdir(folder)) == [".out.partial", "out"]


def test_where_all_names_are_taken_it_says_so(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / (f".out.{number}.partial" if number else ".out.partial")).mkdir()
    with pytest.raises(TargetError, match="are taken by files that are not this program's"):
        write(tmp_path / "out")


@needs_root
def test_another_users_file_is_not_taken_over(tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    for mode in (0o755, 0o1777):
        tmp_path.chmod(mode)
        partial.write_bytes(b"")
        partial.chmod(0o666)
        os.chown(partial, NOBODY, NOBODY)
        write(tmp_path / "out", replace=True)
        found = (tmp_path / "out").stat()
        assert (found.st_uid, found.st_mode & 0o777) == (0, 0o666 & ~_umask())
        assert partial.stat().st_uid == NOBODY
    with partial.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write(tmp_path / "out", replace=True)  # everybody could lock it here
        tmp_path.chmod(0o755)
        with pytest.raises(BusyError):
            write(tmp_path / "out", replace=True)


@pytest.mark.parametrize("replace", [False, True])
def test_what_was_written_gets_the_name_or_nothing_does(tmp_path: Path, replace: bool) -> None:
    if replace:
        (tmp_path / "out").write_bytes(b"old")
    for swap in (os.unlink, lambda partial: os.replace(tmp_path / "other", partial)):
        (tmp_path / "other").write_bytes(b"foreign")
        file = PartialFile(str(tmp_path / "out"), replace=replace)
        file.open()
        swap(file.partial)
        with pytest.raises(TargetError, match=r"out: .*(removed|moved or replaced) while it was"):
            file.commit()
        file.abort()
        assert (tmp_path / "out").exists() == replace
        if replace:
            assert (tmp_path / "out").read_bytes() == b"old"
    assert (tmp_path / ".out.partial").read_bytes() == b"foreign"


def test_a_partial_file_that_was_renamed_gets_its_name_all_the_same(tmp_path: Path) -> None:
    file = PartialFile(str(tmp_path / "out"), replace=False)
    file.open()
    os.write(file.fd, NEW)
    os.rename(file.partial, tmp_path / "moved")
    (tmp_path / ".out.partial").write_bytes(b"foreign")
    file.commit()
    assert (tmp_path / "out").read_bytes() == NEW
    assert (tmp_path / ".out.partial").read_bytes() == b"foreign"


def test_a_folder_that_is_moved_away_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "elsewhere").mkdir()
    file = PartialFile(str(tmp_path / "folder" / "out"), replace=False)
    file.open()
    (tmp_path / "folder").rename(tmp_path / "before")
    (tmp_path / "folder").symlink_to("elsewhere")
    with pytest.raises(TargetError, match="moved or replaced"):
        file.commit()
    file.abort()
    assert list(tmp_path.glob("*/*")) == []


# -- links --


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "out").write_bytes(b"old")
    (tmp_path / "link").symlink_to("big/out")
    (tmp_path / "again").symlink_to("link")
    with pytest.raises(TargetError, match="exists already") as caught:
        write(tmp_path / "again")
    assert caught.value.advice is Advice.REPLACE
    write(tmp_path / "again", replace=True)
    assert (tmp_path / "again").is_symlink() and (tmp_path / "link").is_symlink()
    assert (tmp_path / "big" / "out").read_bytes() == NEW
    assert sorted(os.listdir(tmp_path)) == ["again", "big", "link"]


def test_links_that_lead_nowhere_or_round(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "round").symlink_to("round")
    for name, sentence in (("nowhere", "a link to a file that does not exist"), ("round", "Too many levels")):
        with pytest.raises(TargetError, match=sentence):
            write(tmp_path / name, replace=True)


@needs_root
def test_another_users_link_where_everybody_can_make_one_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    (tmp_path / "victim").write_bytes(b"victim")
    (folder / "out").symlink_to(tmp_path / "victim")
    os.lchown(folder / "out", NOBODY, NOBODY)
    folder.chmod(0o1777)
    with pytest.raises(TargetError, match="a link that another user has made"):
        write(folder / "out", replace=True)
    folder.chmod(0o755)
    write(folder / "out", replace=True)
    assert (tmp_path / "victim").read_bytes() == NEW


def test_replacing_a_file_with_two_names_leaves_the_other_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    os.link(tmp_path / "out", tmp_path / "kept")
    write(tmp_path / "out", replace=True)
    assert (tmp_path / "kept").read_bytes() == b"old"
    assert os.listxattr(tmp_path / "kept") == os.listxattr(tmp_path / "out") == []


# -- what a failed one leaves --


def test_a_failed_one_is_kept_and_a_later_one_removes_it(tmp_path: Path) -> None:
    file = write(tmp_path / "out", keep_partial=True, fail=True)
    assert file.kept == str(tmp_path / "out.partial")
    assert write(tmp_path / "out", keep_partial=True, fail=True).kept == file.kept
    assert os.listdir(tmp_path) == ["out.partial"]
    write(tmp_path / "out", keep_partial=True)
    assert os.listdir(tmp_path) == ["out"]


def test_somebody_elses_partial_file_is_neither_overwritten_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_bytes(b"a download")
    if leftover.is_marked(os.open(tmp_path, os.O_RDONLY)) is None:
        pytest.skip("the filesystem has no extended attributes")
    file = write(tmp_path / "out", keep_partial=True, fail=True)
    assert file.kept == str(tmp_path / "out.1.partial")
    write(tmp_path / "out", keep_partial=True)
    assert sorted(os.listdir(tmp_path)) == ["out", "out.partial"]
    assert (tmp_path / "out.partial").read_bytes() == b"a download"


# -- names and places --


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "n" * 247, "n" * 240])
def test_every_name_that_the_filesystem_allows(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, keep_partial=True, fail=True)
    assert file.kept is not None and file.kept.endswith(".partial")
    os.fsencode(file.kept).decode()
    killed(tmp_path / name)
    write(tmp_path / name, keep_partial=True)
    assert os.listdir(tmp_path) == [name]


def test_names_that_are_too_long_alike_have_partial_names_that_differ(tmp_path: Path) -> None:
    names = {open_place(str(tmp_path / ("n" * 254 + end))).beside(".", ".partial") for end in "abc"}
    assert len(names) == 3
    assert all(len(name) == 255 for name in names)
    with pytest.raises(TargetError, match="its name is longer than this filesystem allows"):
        write(tmp_path / ("n" * 256))


@pytest.mark.parametrize(
    "place", ["/dev/nosuch", "/dev/disk/nosuch", "/proc/nosuch", "/sys/nosuch", "/proc/self/cwd/.."]
)
def test_no_files_where_the_kernel_has_its_own(place: str) -> None:
    with pytest.raises(TargetError, match=r"there is no such device|is the kernel.s|names a folder"):
        write(Path(place))
    assert not os.path.exists("/dev/nosuch")


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(TargetError, match=r"no locks \(No locks available\).*; mount it with locks"):
        write(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    """Root may list all; so the folder is opened as one who may not has it."""
    place = open_place(str(tmp_path / "out"))
    os.dup2(os.open(tmp_path, os.O_PATH), place.fd)
    place.sync()
    place.close()


def test_the_own_path_leads_to_the_open_file(tmp_path: Path) -> None:
    file = PartialFile(str(tmp_path / "out"), replace=False)
    file.open()
    os.write(file.fd, NEW)
    os.rename(file.partial, tmp_path / "moved")
    assert subprocess.run(["cat", file.own_path], stdout=subprocess.PIPE, check=True).stdout == NEW
    file.abort()


@needs_root
def test_a_fifo_that_another_user_has_put_there_gets_nothing(tmp_path: Path) -> None:
    """Its maker would read the disk."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    os.mkfifo(folder / "out")
    os.chown(folder / "out", NOBODY, NOBODY)
    sink = StreamSink(LocalPath(str(folder / "out")))
    with pytest.raises(TargetError, match="a FIFO that another user has made"):
        asyncio.run(sink.begin())
