from __future__ import annotations

import os
from pathlib import Path

import pytest

from pybackup.core.errors import BusyError
from pybackup.core.stores.upload_record import UploadRecord, records_folder


def record(folder: Path, place: str = "server bucket key") -> UploadRecord:
    return UploadRecord("s3://bucket/key", place, str(folder / "uploads"))


def test_a_dead_run_is_remembered_and_a_finished_one_forgotten(tmp_path: Path) -> None:
    first = record(tmp_path)
    assert first.take() is None
    first.remember("upload-1")
    first.close()
    second = record(tmp_path)
    assert second.take() == "upload-1"
    second.remember("2")
    second.forget()
    assert os.listdir(tmp_path / "uploads") == []
    assert record(tmp_path).take() is None


def test_a_live_run_is_not_disturbed(tmp_path: Path) -> None:
    first = record(tmp_path)
    first.take()
    first.remember("upload-1")
    with pytest.raises(BusyError, match="another run is writing s3://bucket/key"):
        record(tmp_path).take()
    assert record(tmp_path, "server bucket other").take() is None
    first.close()
    assert record(tmp_path).take() == "upload-1"


def test_without_a_folder_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file")
    one = record(tmp_path)
    assert one.take() is None
    one.remember("upload-1")
    one.forget()
    assert (tmp_path / "uploads").read_text() == "a file"


def test_where_the_records_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert records_folder() == "/state/pybackup/uploads"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert records_folder() == "/home/x/.local/state/pybackup/uploads"
