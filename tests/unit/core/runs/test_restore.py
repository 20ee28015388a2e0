"""The course of a restore, for users of the library: the rules that protect what is there hold for them too."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from archives import encode

from pybackup.core.endpoints import open_targets
from pybackup.core.errors import Advice, BusyError, PybackupError, RequestError, TargetError
from pybackup.core.places.kinds import LocalPath, NbdUri
from pybackup.core.places.parsing import TARGET
from pybackup.core.runs.restore import RestoreRequest, restore
from pybackup.core.system.image_lock import ImageLock

DISK = random.Random(5).randbytes(200_000)
ONE, TWO = LocalPath("one.vma"), LocalPath("two.vma")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.vma").write_bytes(encode({"disk": DISK}))
    (tmp_path / "two.vma").write_bytes(encode({"a": DISK, "b": DISK[::-1]}))
    return tmp_path


def run(request: RestoreRequest) -> None:
    with restore(request) as (job, _):
        asyncio.run(job.run())


def refused(request: RestoreRequest, kind: type[PybackupError], sentence: str) -> PybackupError:
    with pytest.raises(kind) as caught:
        run(request)
    assert sentence in str(caught.value)
    assert "--" not in str(caught.value)
    return caught.value


def test_drives_go_to_files_and_folders(folder: Path) -> None:
    (folder / "into").mkdir()
    run(RestoreRequest(ONE, LocalPath("new.raw")))
    run(RestoreRequest(TWO, LocalPath("into")))
    run(RestoreRequest(TWO, places=[("b", LocalPath("b.img")), ("a", LocalPath("into/"))], replace=True))
    assert (folder / "new.raw").read_bytes() == (folder / "into" / "a.raw").read_bytes() == DISK
    assert (folder / "b.img").read_bytes() == (folder / "into" / "b.raw").read_bytes() == DISK[::-1]


def test_what_makes_no_sense_is_refused() -> None:
    refused(RestoreRequest(TWO, LocalPath("x")), RequestError, "the archive has 2 drives (a, b)")
    refused(RestoreRequest(TWO, LocalPath("x"), drives=["c"]), RequestError, "no drive c; it has a, b")
    twice = [("a", LocalPath("x")), ("b", LocalPath("x"))]
    refused(RestoreRequest(TWO, places=twice), RequestError, "the target x is named twice")
    refused(RestoreRequest(ONE, LocalPath("x"), with_configs=True), RequestError, "restored to a folder")
    export = NbdUri.of("nbd://localhost/x")
    assert export is not None
    asked = RestoreRequest(ONE, export, image_format="qcow2")
    refused(asked, RequestError, "qcow2 images are made as new files")


@pytest.mark.parametrize("name", ["one.vma", "link", "hard"])
def test_no_drive_replaces_the_archive_that_it_is_read_from(folder: Path, name: str) -> None:
    (folder / "link").symlink_to("one.vma")
    os.link(folder / "one.vma", folder / "hard")
    asked = RestoreRequest(ONE, TARGET.parse(name), replace=True)
    refused(asked, RequestError, "would be replaced by what is restored from it")
    assert (folder / "one.vma").read_bytes() == encode({"disk": DISK})


def test_an_archive_and_a_file_that_exists_are_kept(folder: Path) -> None:
    asked = RestoreRequest(ONE, TWO, replace=True)
    refused(asked, TargetError, "is an archive, which no restored disk replaces")
    (folder / "old").write_bytes(b"old")
    error = refused(RestoreRequest(ONE, LocalPath("old")), TargetError, "old exists already")
    assert error.advice is Advice.REPLACE and (folder / "old").read_bytes() == b"old"


def test_an_image_that_is_in_use_is_not_replaced(folder: Path) -> None:
    (folder / "used.img").write_bytes(b"used")
    asked = RestoreRequest(ONE, LocalPath("used.img"), replace=True)
    with open(folder / "used.img", "rb") as file, ImageLock.for_reading(file.fileno(), "used.img"):
        refused(asked, BusyError, "in use by another program")
    assert (folder / "used.img").read_bytes() == b"used"
    run(asked)
    assert (folder / "used.img").read_bytes() == DISK


def test_a_disk_that_is_in_use_is_never_overwritten_and_others_only_when_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "disk").write_bytes(DISK)
    uses = ["it is mounted at /"]
    monkeypatch.setattr(open_targets, "_is_block_device", lambda path: path == "disk")
    monkeypatch.setattr(open_targets, "disk_in_use", lambda _: uses[0] if uses else None)
    for replace in (False, True):
        asked = RestoreRequest(ONE, LocalPath("disk"), replace=replace)
        refused(asked, TargetError, "disk is in use: it is mounted at /")
    uses.clear()
    error = refused(RestoreRequest(ONE, LocalPath("disk")), TargetError, "disk is a block device")
    assert error.advice is Advice.OVERWRITE_ALL


def test_a_disk_that_is_too_small_or_locked_is_not_touched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_targets, "_is_block_device", lambda path: path == "disk")
    (folder / "disk").write_bytes(b"x" * 4096)
    asked = RestoreRequest(ONE, LocalPath("disk"), replace=True)
    refused(asked, TargetError, "is too small")
    with open(folder / "disk", "rb") as file, ImageLock.for_reading(file.fileno(), "disk"):
        refused(asked, BusyError, "in use by another program")
    assert (folder / "disk").read_bytes() == b"x" * 4096
