"""Folders of stores: listed, with small files that are read, replaced and removed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from archives import encode
from faulty_proxy import FaultyProxy
from object_store import Store, moto_server
from sftp_server import PASSWORD, Files, sftp_server

from pybackup.core.archive.listing import archives_in
from pybackup.core.errors import ArchiveError
from pybackup.core.places.kinds import StoreUrl
from pybackup.core.stores import folder_sources
from pybackup.core.stores.remote_folder import RemoteFolder, open_remote_folder

DISK = {"disk": b"x" * 70_000}


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with moto_server() as port, FaultyProxy(port).running() as proxy:
        store = Store(port, proxy, tmp_path_factory.mktemp("store"), "bucket")
        with environment(store.environment):
            yield store


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    (tmp_path / "remote" / "shelf").mkdir(parents=True)
    (tmp_path / ".ssh").mkdir()
    with sftp_server(tmp_path / "remote") as files:
        (tmp_path / ".ssh" / "known_hosts").write_text(files.known_hosts())
        with environment({"HOME": str(tmp_path), "PYBACKUP_PATIENCE": "8"}), pytest.MonkeyPatch.context() as patch:
            patch.delenv("SSH_AUTH_SOCK", raising=False)
            yield files


def play(folder: RemoteFolder) -> None:
    """What every store does alike."""
    assert folder.read("small") is None
    folder.write("small", b"one")
    folder.write("small", b"two")
    assert folder.read("small") == b"two"
    folder.remove("small")
    assert folder.read("small") is None
    folder.remove("small")


def test_a_prefix_of_a_bucket(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = encode(DISK)
    for key in ("top.vma.zst", "a/one.vma.zst", "a/two", "a/below/three.vma.zst", "a/.x.partial", "ab/four"):
        store.put(key, archive)
    store.put("a/", b"")
    for url in ("s3://bucket/a", "s3://bucket/a/"):
        found = archives_in(StoreUrl(url))
        assert [one.name for one in found] == ["one.vma.zst", "two"]
        assert [str(one.place) for one in found] == ["s3://bucket/a/one.vma.zst", "s3://bucket/a/two"]
        assert all(one.size == len(archive) for one in found)
        assert all(one.modified is not None and abs(one.modified - time.time()) < 3600 for one in found)
    assert [one.name for one in archives_in(StoreUrl("s3://bucket"))] == ["top.vma.zst"]
    assert archives_in(StoreUrl("s3://bucket/nothing")) == []
    monkeypatch.setattr(folder_sources, "PAGE", 1)
    assert [one.name for one in archives_in(StoreUrl("s3://bucket/a"))] == ["one.vma.zst", "two"]
    with open_remote_folder(StoreUrl("s3://bucket/small")) as folder:
        play(folder)
    with pytest.raises(ArchiveError, match="cannot list s3://none: the bucket does not exist"):
        archives_in(StoreUrl("s3://none"))


def test_a_folder_over_sftp(files: Files) -> None:
    shelf = files.folder / "shelf"
    (shelf / "one.vma.zst").write_bytes(encode(DISK))
    (shelf / "below").mkdir()
    (shelf / "link.vma.zst").symlink_to("one.vma.zst")
    os.mkfifo(shelf / "fifo.vma.zst")
    url = StoreUrl(f"sftp://user:{PASSWORD}@127.0.0.1:{files.port}/shelf")
    (found,) = archives_in(url)
    assert (found.name, found.size) == ("one.vma.zst", len(encode(DISK)))
    assert found.place.text.endswith("/shelf/one.vma.zst") and PASSWORD not in str(found.place)
    assert found.modified == int((shelf / "one.vma.zst").stat().st_mtime)
    with open_remote_folder(url) as folder:
        play(folder)
        assert folder.entries() == [folder_sources.RemoteEntry("one.vma.zst", found.size, found.modified)]
    with pytest.raises(ArchiveError, match="it does not exist"):
        archives_in(StoreUrl(f"sftp://user:{PASSWORD}@127.0.0.1:{files.port}/nothing"))
