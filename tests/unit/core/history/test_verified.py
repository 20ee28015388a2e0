"""What was verified and when: remembered beside the archives, whatever happens to the file."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nightly_archives import NIGHT, nights

from pybackup.core.history import verified as verified_module
from pybackup.core.history.catalog import Entry, read_catalog
from pybackup.core.history.verified import RECORD, Verified, VerifiedRecord, key_of, open_record
from pybackup.core.places.kinds import LocalPath


def record_of(folder: Path) -> VerifiedRecord:
    record = open_record(LocalPath(str(folder)))
    record.load()
    return record


def entries(folder: Path, count: int = 2) -> list[Entry]:
    if not list(folder.glob("*.zst")):
        nights(folder, count, full_every=1)
    return read_catalog(LocalPath(str(folder))).entries


def test_the_last_time_counts(tmp_path: Path) -> None:
    one, other = entries(tmp_path)
    record = record_of(tmp_path)
    assert record.of(one) == Verified() and not record.is_sound(one)
    assert record.note(one, sound=True, now=1000)
    assert record.note(one, sound=True, now=2000, is_sample=True)
    for found in (record, record_of(tmp_path)):
        assert found.of(one) == Verified(1000, True, 2000)
        assert found.is_sound(one) and not found.is_sound(other)
    record.note(one, sound=False, now=3000)
    assert record_of(tmp_path).of(one) == Verified(3000, False, 2000)
    assert not record_of(tmp_path).is_sound(one)
    # Another name of the same file, but not another file of the same name.
    os.rename(tmp_path / one.name, tmp_path / "renamed.vma.zst")
    again = read_catalog(LocalPath(str(tmp_path))).by_name["renamed.vma.zst"]
    assert record_of(tmp_path).of(again).whole == 3000


def test_a_sample_that_found_damage_ends_the_trust(tmp_path: Path) -> None:
    one, _ = entries(tmp_path)
    record = record_of(tmp_path)
    record.note(one, sound=True, now=1000)
    record.note(one, sound=False, now=1001, is_sample=True)
    assert not record_of(tmp_path).is_sound(one)
    record.note(one, sound=True, now=1002, is_sample=True)
    assert not record_of(tmp_path).is_sound(one)


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)), max_size=6))
def test_garbage_is_nothing(garbage: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (one,) = entries(folder, 1)
        good = json.dumps({"archive": key_of(one), "sound": True, "whole": 1000}).encode()
        (folder / RECORD).write_bytes(b"\n".join([*garbage, good, *garbage, good[: len(good) // 2]]))
        record = record_of(folder)
        assert record.of(one).whole == 1000
        # A line that was cut off takes nothing with it.
        record.note(one, sound=True, now=2000)
        assert record_of(folder).of(one).whole == 2000


@pytest.mark.parametrize(
    "told",
    [
        {"whole": 1000},
        {"sound": 1, "whole": 1000},
        {"sound": True},
        {"sound": True, "whole": "1000"},
        {"sound": True, "whole": True},
        {"sound": True, "whole": -1},
        {"sound": True, "whole": 1e300},
        [],
        "text",
    ],
)
def test_what_makes_no_sense_is_nothing(tmp_path: Path, told: object) -> None:
    one, _ = entries(tmp_path)
    line = {"archive": key_of(one), **told} if isinstance(told, dict) else told
    (tmp_path / RECORD).write_text(json.dumps(line) + '\n{"archive": 1, "sound": true, "whole": NaN}\n' + "[" * 900)
    assert record_of(tmp_path).of(one) == Verified()


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    one, _ = entries(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / RECORD).symlink_to(elsewhere)
    record = record_of(tmp_path)
    assert not record.note(one, sound=True, now=1000)
    assert not elsewhere.exists()
    (tmp_path / RECORD).unlink()
    os.mkfifo(tmp_path / RECORD)
    record = record_of(tmp_path)
    assert not record.note(one, sound=True, now=1000)
    (tmp_path / RECORD).unlink()
    (tmp_path / RECORD).mkdir()
    assert not record_of(tmp_path).note(one, sound=True, now=1000)
    (tmp_path / RECORD).rmdir()
    elsewhere.write_text("mine")
    (tmp_path / RECORD).hardlink_to(elsewhere)
    assert not record_of(tmp_path).note(one, sound=True, now=1000)
    assert elsewhere.read_text() == "mine"


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    made = entries(tmp_path, 8)
    records = [record_of(tmp_path) for _ in made]

    def write(record: VerifiedRecord, entry: Entry) -> None:
        for number in range(20):
            record.note(entry, sound=True, now=NIGHT + number)

    threads = [threading.Thread(target=write, args=pair) for pair in zip(records, made, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = record_of(tmp_path)
    assert [found.of(entry).whole for entry in made] == [NIGHT + 19] * 8


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = entries(tmp_path)
    record = record_of(tmp_path)
    record.note(other, sound=True, now=5, is_sample=True)
    (tmp_path / f"{RECORD}.partial").write_bytes(b"of one that was killed" * 10_000)
    for number in range(200):
        record.note(one, sound=number % 2 == 0, now=1000 + number)
    assert (tmp_path / RECORD).read_bytes().count(b"\n") < 200
    assert record_of(tmp_path).of(one) == Verified(1199, False)
    assert record_of(tmp_path).of(other) == Verified(sampled=5)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    # Of a file that somebody else has made huge the end counts.
    monkeypatch.setattr(verified_module, "MOST_BYTES", 1000)
    with open(tmp_path / RECORD, "ab") as file:
        file.write(b"x" * 5000)
    record.note(one, sound=True, now=7000)
    assert record_of(tmp_path).of(one).whole == 7000
