"""What is listed of a folder, and what is not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from archives import encode

from pybackup.core.archive.listing import archives_in
from pybackup.core.errors import ArchiveError, RequestError
from pybackup.core.places.kinds import LocalPath, StoreUrl

DISK = {"disk": b"x" * 70_000}


def names(folder: Path) -> list[str]:
    return [one.name for one in archives_in(LocalPath(str(folder)))]


def test_archives_are_listed_by_name_and_by_what_they_begin_or_end_with(tmp_path: Path) -> None:
    archive = encode(DISK)
    (tmp_path / "b").write_bytes(archive)
    (tmp_path / "a.vma.zst").write_bytes(archive)
    (tmp_path / "plain").write_bytes(encode(DISK, level=None))
    (tmp_path / "damaged.VMA").write_bytes(b"\0" * 100)
    # The first frame is damaged, and the end still tells.
    (tmp_path / "end").write_bytes(archive[:4] + b"\xff" * 20 + archive[24:])
    (tmp_path / "other.vma.lzo").write_bytes(b"")
    found = archives_in(LocalPath(str(tmp_path)))
    assert [one.name for one in found] == ["a.vma.zst", "b", "damaged.VMA", "end", "other.vma.lzo", "plain"]
    assert found[0].place == LocalPath(str(tmp_path / "a.vma.zst"))
    assert found[0].size == len(archive)
    assert found[0].modified == (tmp_path / "a.vma.zst").stat().st_mtime
    assert not found[0].is_link


def test_what_is_no_archive_is_not_listed(tmp_path: Path) -> None:
    archive = encode(DISK)
    for name in (".a.vma.zst.partial", "a.vma.zst.partial", ".a.vma.zst.3.partial", ".pybackup-verified.json"):
        (tmp_path / name).write_bytes(archive)
    (tmp_path / "text.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(50))
    (tmp_path / "disk.img").write_bytes(bytes(5000))
    (tmp_path / "empty").touch()
    (tmp_path / "folder.vma.zst").mkdir()
    (tmp_path / "folder.vma.zst" / "below.vma.zst").write_bytes(archive)
    os.mkfifo(tmp_path / "fifo.vma.zst")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.vma"))
        for name, target in (("null.vma", "/dev/null"), ("loop.vma", "loop.vma"), ("nowhere.vma", "nothing")):
            (tmp_path / name).symlink_to(target)
        assert names(tmp_path) == []


def test_a_link_leads_to_archives_that_are_elsewhere_only(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "a.vma.zst").write_bytes(encode(DISK))
    (tmp_path / "elsewhere").write_bytes(encode(DISK))
    (here / "latest.vma.zst").symlink_to("a.vma.zst")
    (here / "moved.vma.zst").symlink_to("../elsewhere")
    found = archives_in(LocalPath(str(here)))
    assert [(one.name, one.is_link) for one in found] == [("a.vma.zst", False), ("moved.vma.zst", True)]
    assert found[1].size == (tmp_path / "elsewhere").stat().st_size


def test_names_need_not_be_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.vma.zst"
    with open(path, "wb") as file:
        file.write(encode(DISK))
    (found,) = archives_in(LocalPath(str(tmp_path)))
    assert isinstance(found.place, LocalPath) and os.path.samefile(found.place.path, path)


def test_what_cannot_be_listed_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="file is no folder"):
        archives_in(LocalPath(str(tmp_path / "file")))
    with pytest.raises(ArchiveError, match=r"cannot list .*nothing: No such file"):
        archives_in(LocalPath(str(tmp_path / "nothing")))
    with pytest.raises(RequestError, match="a web server does not tell"):
        archives_in(StoreUrl("https://127.0.0.1/archives"))
    with pytest.raises(RequestError, match="names no bucket"):
        archives_in(StoreUrl("s3://"))


def test_a_filesystem_in_memory_is_listed_like_a_folder() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    try:
        memory.pipe({"/shelf/b.vma.zst": b"12", "/shelf/a": b"1", "/shelf/.x.partial": b"", "/shelf/below/c": b""})
        found = archives_in(StoreUrl("memory://shelf/"))
        assert [(one.name, str(one.place), one.size) for one in found] == [
            ("a", "memory://shelf/a", 1),
            ("b.vma.zst", "memory://shelf/b.vma.zst", 2),
        ]
        assert all(one.modified is not None and one.modified > 1_700_000_000 for one in found)
    finally:
        memory.rm("/shelf", recursive=True)
