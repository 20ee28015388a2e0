"""What a machine remembers of archives that it cannot read: their indexes, exactly, and nothing that is not theirs."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pybackup.core.archive.index_memory import END, ENDING, MAGIC, PARTIAL, IndexMemory, forget_all_but, remembered
from pybackup.core.errors import NoKeyError

MARK = bytes(range(16))
ARCHIVE = bytes(range(256)) * 40
PIECES = [(0, 300), (5000, 100), (5100, 50), (9000, 1240)]


def remember(folder: Path, pieces: Sequence[tuple[int, int]] = PIECES, **sink: Any) -> IndexMemory:
    made: Any = SimpleNamespace(**{"mark": MARK, "size": 777, **sink})
    memory = IndexMemory(made, str(folder / "a.vma.zst.age"), True, str(folder / "state"))
    for offset, length in pieces:
        memory.note(offset, ARCHIVE[offset : offset + length])
    return memory


def test_the_pieces_are_read_where_they_lay(tmp_path: Path) -> None:
    remember(tmp_path).keep(len(ARCHIVE))
    (kept,) = (tmp_path / "state").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    with remembered(MARK, 777, "a", str(tmp_path / "state")) as found:
        assert found is not None and found.size == len(ARCHIVE)
        for offset, length in [(0, 300), (10, 20), (5000, 150), (5090, 20), (9000, 1240), (len(ARCHIVE) - 9, 9)]:
            assert found.pread(offset, length) == ARCHIVE[offset : offset + length]
        assert found.pread(0, 500) == ARCHIVE[:300] + bytes(200)
        for offset, length in [(300, 1), (299, 2), (4999, 2), (5149, 2), (6000, 10), (8999, 1), (len(ARCHIVE), 1)]:
            with pytest.raises(NoKeyError):
                found.pread(offset, length)


def test_another_file_is_not_remembered(tmp_path: Path) -> None:
    remember(tmp_path).keep(len(ARCHIVE))
    for mark, size in [(MARK, 778), (bytes(16), 777)]:
        with remembered(mark, size, "a", str(tmp_path / "state")) as found:
            assert found is None


def test_what_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    remember(tmp_path).drop()
    assert list((tmp_path / "state").iterdir()) == []


def test_every_cut_is_as_if_nothing_were_there(tmp_path: Path) -> None:
    remember(tmp_path, [(0, 30)]).keep(len(ARCHIVE))
    (kept,) = (tmp_path / "state").iterdir()
    content = kept.read_bytes()
    for end in range(len(content)):
        kept.write_bytes(content[:end])
        with remembered(MARK, 777, "a", str(tmp_path / "state")) as found:
            assert found is None


@pytest.mark.parametrize(
    "told",
    [b"[]", b"{}", b'{"file_size":777}', b'{"file_size":777,"size":9,"pieces":[[1]]}', b"\xff", b'{"pieces":-1}'],
)
def test_nonsense_is_as_if_nothing_were_there(told: bytes, tmp_path: Path) -> None:
    end = END.pack(len(told), zlib.crc32(told), MAGIC)
    (tmp_path / f"{MARK.hex()}{ENDING}").write_bytes(told + end)
    with remembered(MARK, 777, "a", str(tmp_path)) as found:
        assert found is None


def test_what_has_gone_is_forgotten_by_the_next_run(tmp_path: Path) -> None:
    state = tmp_path / "state"
    remember(tmp_path).keep(len(ARCHIVE))
    (state / f"1-x{PARTIAL}").write_bytes(b"")
    (state / f"999999999-x{PARTIAL}").write_bytes(b"")
    other = remember(tmp_path, mark=bytes(16))
    assert {path.name for path in state.iterdir() if path.suffix != PARTIAL} == set()
    assert (state / f"1-x{PARTIAL}").exists() and not (state / f"999999999-x{PARTIAL}").exists()
    (tmp_path / "a.vma.zst.age").write_bytes(b"")
    other.keep(len(ARCHIVE))
    remember(tmp_path, mark=bytes([1] * 16)).drop()
    assert (state / f"{bytes(16).hex()}{ENDING}").exists()


def test_no_flipped_bit_is_remembered(tmp_path: Path) -> None:
    """A run would go by it, and fail halfway, every night, on a parent that is sound."""
    remember(tmp_path, [(0, 30)]).keep(len(ARCHIVE))
    (kept,) = (tmp_path / "state").iterdir()
    content = kept.read_bytes()
    for at in range(len(content)):
        kept.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with remembered(MARK, 777, "a", str(tmp_path / "state")) as found:
            assert found is None, at
    kept.write_bytes(content)
    with remembered(MARK, 777, "a", str(tmp_path / "state")) as found:
        assert found is not None


def test_what_another_user_has_put_there_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(tmp_path).keep(len(ARCHIVE))
    owner = os.stat(tmp_path).st_uid
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with remembered(MARK, 777, "a", str(tmp_path / "state")) as found:
        assert (found is None) is (owner != 0)
    (kept,) = (tmp_path / "state").iterdir()
    if owner == 0:
        os.chown(kept, 4322, -1)
        with remembered(MARK, 777, "a", str(tmp_path / "state")) as found:
            assert found is None


def test_an_archive_that_was_replaced_is_forgotten(tmp_path: Path) -> None:
    """The same name every night: one index, not one of every night."""
    (tmp_path / "a.vma.zst.age").write_bytes(b"")
    for night in range(3):
        remember(tmp_path, mark=bytes([night] * 16)).keep(len(ARCHIVE))
    assert [path.name for path in (tmp_path / "state").iterdir()] == [bytes([2] * 16).hex() + ENDING]


def test_what_has_gone_from_a_store_is_forgotten(tmp_path: Path) -> None:
    state = tmp_path / "state"

    def keep(number: int, place: str) -> Path:
        made: Any = SimpleNamespace(mark=bytes([number] * 16), size=777)
        memory = IndexMemory(made, place, False, str(state))
        memory.note(0, b"header")
        memory.keep(len(ARCHIVE))
        return state / (bytes([number] * 16).hex() + ENDING)

    gone, there = keep(1, "s3://b/vm/1"), keep(2, "s3://b/vm/2")
    elsewhere, below = keep(3, "s3://b/other/1"), keep(4, "s3://b/vm/deep/1")
    os.mkfifo(state / f"pipe{ENDING}")
    later = gone.stat().st_mtime
    forget_all_but("s3://b/vm", {"s3://b/vm/2"}, later - 1, str(state))
    assert gone.exists(), "it may have been made after the place was asked"
    forget_all_but("s3://b/vm", {"s3://b/vm/2"}, later + 60, str(state))
    assert not gone.exists()
    assert there.exists() and elsewhere.exists() and below.exists()


def test_a_state_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"a file")
    memory = remember(tmp_path)
    memory.keep(len(ARCHIVE))
    assert memory.problem is not None and os.fspath(tmp_path) in memory.problem
